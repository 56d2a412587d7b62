package gateway

import (
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// reports are the certificates in use beside the identity, for core: so that
// its operator learns in time which of them end.
func (g *gateway) reports() []*control.Certificate {
	var list []*control.Certificate
	if file := g.settings.GRPCCA; file != "" && file != configs.CASystem {
		list = append(list, link.ReportFile("CA of core's port", file, true))
	}
	for _, u := range g.settings.Upstreams {
		if u.Cert != "" {
			list = append(list, link.ReportFile("upstream "+u.Name, u.Cert, false))
		}
		if u.CA != "" {
			list = append(list, link.ReportFile("CA of upstream "+u.Name, u.CA, true))
		}
	}
	if g.export != nil {
		if c := g.export.report(); c != nil {
			list = append(list, c)
		}
	}
	if g.entrances != nil && g.entrances.pair != nil {
		if c := g.entrances.pair.Report(); c != nil {
			list = append(list, c)
		}
	}
	return list
}
