package dashboard

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"time"
)

//go:embed page
var pageFiles embed.FS

//go:embed openapi.yaml
var openAPI []byte

var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// openAPIPath is where the description of the API is.
const openAPIPath = "/api/v1/openapi.yaml"

type pageFile struct {
	body        []byte
	contentType string
	etag        string
}

// page serves the embedded files.
type page map[string]pageFile

func newPage() (page, error) {
	p := page{}
	entries, err := fs.ReadDir(pageFiles, "page")
	if err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	for _, entry := range entries {
		body, err := pageFiles.ReadFile(path.Join("page", entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the page: %w", err)
		}
		p["/"+entry.Name()] = newPageFile(body, pageTypes[path.Ext(entry.Name())])
	}
	p["/"] = p["/index.html"]
	p[openAPIPath] = newPageFile(openAPI, "application/yaml")
	return p, nil
}

func newPageFile(body []byte, contentType string) pageFile {
	digest := sha256.Sum256(body)
	return pageFile{body: body, contentType: contentType, etag: `"` + hex.EncodeToString(digest[:8]) + `"`}
}

func (p page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, ok := p[r.URL.Path]
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "only GET is answered here")
	case !ok:
		writeError(w, http.StatusNotFound, "no such page; the dashboard is at /")
	default:
		w.Header().Set("Content-Type", file.contentType)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", file.etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file.body))
	}
}
