package policy

import "strings"

// Opens says whether c may call any method of service, going by the rows alone:
// for services of which it is not known what methods they have.
func (p *Policy) Opens(service string, c Caller) bool {
	prefix := "/" + service + "/"
	for _, r := range p.rows {
		if strings.HasPrefix(r.pattern, prefix) && !strings.HasSuffix(r.pattern, "*") && p.Decide(r.pattern, c).Allowed {
			return true
		}
	}
	return p.Decide(prefix+"_", c).Allowed // what a row for the whole service or its package says
}
