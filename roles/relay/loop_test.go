package relay

import "testing"

func TestRound(t *testing.T) {
	header := []Field{{Name: "cdn-loop", Value: "other, sallyport-not;a=1"}, {Name: "x-own", Value: "sallyport"}}
	n := 0
	for ; n < 100; n++ {
		f, ok := Round(header)
		if !ok {
			break
		}
		if n%2 == 0 {
			header = append(header, f)
		} else { // as somebody in between may write it
			last := &header[len(header)-1]
			last.Value += " ; v=\"1\" ,\t" + f.Value + ";x"
		}
	}
	if n != maxRounds {
		t.Errorf("a call came %d times", n)
	}
}
