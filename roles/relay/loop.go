package relay

import "strings"

// Calls that go in circles: an upstream that is, or leads to, an entrance of
// ours takes a call that came to it back to core, which brings it there again.
// RFC 8586 has a header for that. Whoever writes it without need ends his own
// call.
const (
	headerLoop = "cdn-loop"
	loopID     = "sallyport"
	maxRounds  = 16 // also those of services that pass on the headers that they get
)

// Round is the field that an entrance adds to the header of a call that it takes;
// it is false for a call that has come by entrances too often.
func Round(header []Field) (Field, bool) {
	rounds := 0
	for i := range header {
		if header[i].Name != headerLoop {
			continue
		}
		for part := range strings.SplitSeq(header[i].Value, ",") {
			if id, _, _ := strings.Cut(part, ";"); strings.Trim(id, " \t") == loopID {
				rounds++
			}
		}
	}
	return Field{Name: headerLoop, Value: loopID}, rounds < maxRounds
}
