package core

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sallyport/roles/policy/token"
)

// The keys that issuers published are kept beside the database, with its
// protection, so that a core that starts while an issuer is away knows them: as
// long, counted from when they were fetched, as if it had gone on running. They
// are public, and are nothing without the policy that names their issuer.

const (
	issuerFile    = "issuers.json"
	maxIssuerFile = 64 << 20
)

// keptKeys are an issuer's keys in the file.
type keptKeys struct {
	URL     string          `json:"url"`
	Fetched time.Time       `json:"fetched"`
	JWKS    json.RawMessage `json:"jwks"`
}

// remember reads what was kept. What cannot be read is left out: it is fetched
// again.
func (s *issuers) remember(dataDir string) {
	s.path = filepath.Join(dataDir, issuerFile)
	info, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var kept []keptKeys
	var raw []byte
	if err == nil && info.Size() <= maxIssuerFile {
		raw, err = os.ReadFile(s.path)
	}
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if err != nil {
		s.log.Warn("the keys of issuers of tokens that were kept cannot be read, they are fetched again", "file", s.path, "cause", err)
		return
	}
	now := s.now()
	for _, k := range kept {
		keys, err := token.ParseKeys(k.JWKS)
		if err != nil || now.Sub(k.Fetched) > keysMaxAge || k.Fetched.After(now) {
			continue
		}
		s.kept[k.URL] = &issuer{url: k.URL, keys: keys, good: k.Fetched, due: now, done: make(chan struct{})}
	}
}

// keep writes what is known.
func (s *issuers) keep() {
	if s.path == "" {
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	list := []keptKeys{}
	s.mu.Lock()
	for _, i := range s.known {
		if i.file == "" && i.keys != nil {
			list = append(list, keptKeys{i.url, i.good, i.keys.JWKS()})
		}
	}
	s.mu.Unlock()
	raw, err := json.Marshal(list)
	if err == nil {
		err = writeFile(s.path, raw)
	}
	if err != nil {
		s.log.Error("the keys of issuers of tokens are not kept for the next start", "cause", err)
	}
}
