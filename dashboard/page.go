package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

//go:embed ui
var pageFiles embed.FS

var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".mjs":  "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

// pageRoutes are the addresses that the page's own router understands; those
// that end in a slash have a name after it.
var pageRoutes = []string{"/", "/map", "/live", "/identities", "/proxies", "/service/", "/edge/"}

// page serves the embedded files. All but index.html are asked for under a
// folder named after what they hold together, so that a browser may keep them
// for ever; index.html names that folder, and is asked for each time.
type page struct {
	index  *pageFile
	assets map[string]*pageFile // by path
}

type pageFile struct {
	body        []byte
	contentType string
	etag        string
	zipped      func() []byte // made when first asked for
}

func newPage() (*page, error) {
	root, err := fs.Sub(pageFiles, "ui")
	if err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	bodies, digest := map[string][]byte{}, sha256.New()
	err = fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		bodies[name], err = fs.ReadFile(root, name)
		fmt.Fprintf(digest, "%s %d\n%s", name, len(bodies[name]), bodies[name])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	folder := "/assets/" + hex.EncodeToString(digest.Sum(nil)[:6])
	p := &page{assets: map[string]*pageFile{}}
	for name, body := range bodies {
		p.assets[folder+"/"+name] = newPageFile(name, body)
	}
	delete(p.assets, folder+"/index.html")
	p.index = newPageFile("index.html", fillIndex(bodies["index.html"], folder, bodies))
	return p, nil
}

// fillIndex writes the assets' folder into index.html, and a line for each
// module, so that boot.js asks for all of them at once instead of the browser's
// finding out one by one what imports what.
func fillIndex(index []byte, folder string, bodies map[string][]byte) []byte {
	var modules []string
	for name := range bodies {
		if ext := path.Ext(name); ext == ".mjs" || ext == ".js" && name != "boot.js" && name != "vendor/uplot.js" {
			modules = append(modules, fmt.Sprintf("<link rel=\"part\" href=\"%s/%s\">", folder, name))
		}
	}
	slices.Sort(modules)
	index = bytes.ReplaceAll(index, []byte(`"/assets/`), []byte(`"`+folder+`/`))
	return bytes.ReplaceAll(index, []byte("<!-- parts -->"), []byte(strings.Join(modules, "\n    ")))
}

func newPageFile(name string, body []byte) *pageFile {
	digest := sha256.Sum256(body)
	return &pageFile{
		body: body, contentType: pageTypes[path.Ext(name)], etag: hex.EncodeToString(digest[:8]),
		zipped: sync.OnceValue(func() []byte {
			var buffer bytes.Buffer
			w, _ := gzip.NewWriterLevel(&buffer, gzip.BestCompression) // the level is a valid one
			_, _ = w.Write(body)                                       // a Buffer takes everything
			_ = w.Close()
			return buffer.Bytes()
		}),
	}
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, caching := p.assets[r.URL.Path], "public, max-age=31536000, immutable"
	if isPageRoute(r.URL.Path) {
		file, caching = p.index, "no-cache"
	}
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "only GET is answered here")
	case file == nil:
		writeError(w, http.StatusNotFound, "no such page; the dashboard is at /")
	default:
		w.Header().Set("Cache-Control", caching)
		file.serve(w, r)
	}
}

func isPageRoute(path string) bool {
	return slices.ContainsFunc(pageRoutes, func(route string) bool {
		return path == route || len(route) > 1 && strings.HasSuffix(route, "/") && strings.HasPrefix(path, route)
	})
}

func (f *pageFile) serve(w http.ResponseWriter, r *http.Request) {
	header, body, etag := w.Header(), f.body, f.etag
	if acceptsGzip(r.Header.Get("Accept-Encoding")) {
		body, etag = f.zipped(), etag+"-gzip"
		header.Set("Content-Encoding", "gzip")
	}
	header.Set("Vary", "Accept-Encoding")
	header.Set("Content-Type", f.contentType)
	header.Set("ETag", `"`+etag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// acceptsGzip reads an Accept-Encoding header (RFC 9110, 12.5.3). One that
// weighs encodings against each other is left alone but for a refusal.
func acceptsGzip(header string) bool {
	for coding := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(strings.TrimSpace(coding), ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			q := strings.ReplaceAll(weight, " ", "")
			return strings.TrimRight(strings.TrimPrefix(q, "q="), "0.") != "" || q == ""
		}
	}
	return false
}
