package configs

import "path/filepath"

// firewallFile is the data file's name in a data directory.
const firewallFile = "firewall.json"

// peers reads whether addresses decide who may come to a role's gRPC port, and
// where root finds which ones.
func (b *loader) peers(r Role, dataDir string) (unchecked bool, file string) {
	unchecked = b.word("peer-check", r) == "off"
	f := b.find(settingOf("firewall-file"), r)
	switch file = b.path(f); {
	case !f.given() && dataDir == "": // --state memory
	case !f.given():
		file = filepath.Join(dataDir, firewallFile)
	case file == "":
		b.bad.add("firewall-file", f.from, "it names no file", "give a path, or leave it out")
	}
	b.row(f, quote(file))
	return unchecked, file
}

// coreIP reads where core comes from, as the proxy's own host says.
func (b *loader) coreIP() []string {
	f := b.find(settingOf("core-ip"), RoleProxy)
	if f.given() && b.src.CheckPeers != nil {
		if err := b.src.CheckPeers(f.texts); err != nil {
			b.bad.add("core-ip", f.from, err.Error(), "name the addresses that this host sees core come from, such as 203.0.113.7 or 10.1.0.0/16")
		}
	}
	b.row(f, quoteList(f.texts))
	return f.texts
}
