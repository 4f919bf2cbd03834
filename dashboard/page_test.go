package dashboard

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func newTestPage(t *testing.T) *page {
	t.Helper()
	p, err := newPage()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The page may only put text in, never markup. What the policy in guard.go
// forbids, a browser would refuse, too; this says so earlier.
func TestPageNeverMakesMarkup(t *testing.T) {
	p := newTestPage(t)
	files := map[string]*pageFile{"index.html": p.index}
	harmless := strings.NewReplacer(`="http://www.w3.org/2000/svg"`, "", "url(#", "") // neither fetches anything
	for name, file := range p.assets {
		if !strings.Contains(name, "/vendor/") {
			files[name] = file
		}
	}
	for name, file := range files {
		body := string(file.body)
		for _, bad := range []string{
			"innerHTML", "outerHTML", "InnerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "javascript:", "setHTML",
			"createContextualFragment", "srcdoc", "localStorage", `="http`, `("http`, "url(", "@import", "style=\"", "onclick=\"", "onload=", "<style", "cssText",
		} {
			if strings.Contains(harmless.Replace(body), bad) {
				t.Errorf("%s contains %q", name, bad)
			}
		}
	}
	for _, script := range regexp.MustCompile(`(?s)<script[^>]*>.*?</script>`).FindAllString(string(p.index.body), -1) {
		if !strings.Contains(script, "src=") || !strings.HasSuffix(script, "></script>") {
			t.Errorf("index.html has an inline script: %s", script)
		}
	}
}

// What a browser fetches must stay small: the bound is of issue 6.
func TestPageIsSmall(t *testing.T) {
	const most = 250 << 10
	p := newTestPage(t)
	total := len(p.index.zipped())
	for name, file := range p.assets {
		if file.contentType == "" {
			t.Errorf("%s has no content type", name)
		}
		total += len(file.zipped())
	}
	t.Logf("%d files, %d bytes with gzip", len(p.assets)+1, total)
	if total > most {
		t.Errorf("%d bytes with gzip, at most %d are allowed", total, most)
	}
}

// Each module must be there under the name that others import it by.
func TestPageImportsWhatIsThere(t *testing.T) {
	p := newTestPage(t)
	imports := regexp.MustCompile(`(?m)(?:^import|\bfrom) ?"([^"]+)";`)
	for name, file := range p.assets {
		for _, match := range imports.FindAllStringSubmatch(string(file.body), -1) {
			if _, ok := p.assets[path.Join(path.Dir(name), match[1])]; !ok || !strings.HasPrefix(match[1], ".") {
				t.Errorf("%s imports %q, which is not there", name, match[1])
			}
		}
	}
	for _, match := range regexp.MustCompile(`(?:src|href)="(/assets/[^"]+)"`).FindAllStringSubmatch(string(p.index.body), -1) {
		if p.assets[match[1]] == nil {
			t.Errorf("index.html names %s, which is not there", match[1])
		}
	}
}

func askPage(p *page, method, target string, header http.Header) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	r.Header = header
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result()
}

func TestPageServes(t *testing.T) {
	p := newTestPage(t)
	app := assetNamed(t, p, "/app.js")
	for _, c := range []struct {
		method, target, accept string
		status                 int
		encoding, caching      string
	}{
		{"GET", "/", "gzip, deflate, br", 200, "gzip", "no-cache"},
		{"GET", "/", "", 200, "", "no-cache"},
		{"GET", "/map?range=1h", "gzip;q=0", 200, "", "no-cache"},
		{"GET", "/service/a%2Fb", "br, gzip ; q=0.5", 200, "gzip", "no-cache"},
		{"GET", "/edge/a/b", "gzip; q=0.0", 200, "", "no-cache"},
		{"GET", app, "gzip", 200, "gzip", "public, max-age=31536000, immutable"},
		{"HEAD", app, "", 200, "", "public, max-age=31536000, immutable"},
		{"GET", "/assets/000000000000/app.js", "", 404, "", "no-store"},
		{"GET", "/app.js", "", 404, "", "no-store"},
		{"GET", "/index.html", "", 404, "", "no-store"},
		{"GET", "/mapp", "", 404, "", "no-store"},
		{"POST", "/", "", 405, "", "no-store"},
	} {
		got := askPage(p, c.method, c.target, http.Header{"Accept-Encoding": {c.accept}})
		if got.StatusCode != c.status || got.Header.Get("Content-Encoding") != c.encoding || got.Header.Get("Cache-Control") != c.caching {
			t.Errorf("%s %s (%q): %d %q %q, want %d %q %q", c.method, c.target, c.accept, got.StatusCode,
				got.Header.Get("Content-Encoding"), got.Header.Get("Cache-Control"), c.status, c.encoding, c.caching)
		}
	}
}

func TestPageIsTheSameZippedAndFetchedOnce(t *testing.T) {
	p := newTestPage(t)
	for name, file := range p.assets {
		got := askPage(p, "GET", name, http.Header{"Accept-Encoding": {"gzip"}})
		unzip, err := gzip.NewReader(got.Body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if body, err := io.ReadAll(unzip); err != nil || !slices.Equal(body, file.body) {
			t.Errorf("%s differs when zipped: %v", name, err)
		}
		again := askPage(p, "GET", name, http.Header{"Accept-Encoding": {"gzip"}, "If-None-Match": {got.Header.Get("Etag")}})
		if again.StatusCode != http.StatusNotModified {
			t.Errorf("%s: asked again: %d", name, again.StatusCode)
		}
	}
}

func assetNamed(t *testing.T, p *page, suffix string) string {
	t.Helper()
	for name := range p.assets {
		if strings.HasSuffix(name, suffix) {
			return name
		}
	}
	t.Fatalf("no asset is named %s", suffix)
	return ""
}
