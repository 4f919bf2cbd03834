package dashboard

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestPathView(t *testing.T) {
	asked := ""
	h := newTestHandler(t, newTestCollector(t, nil), func(c *HandlerConfig) {
		c.Path = func(client, server, namespace string) (*mesh.Path, error) {
			asked = client + " " + server + " " + namespace
			if server == "nobody" {
				return nil, errors.New("nothing is called nobody; see: tulle ps")
			}
			return &mesh.Path{Client: mesh.PathEnd{Name: "web"}, Server: mesh.PathEnd{Name: "db"}, Ports: []mesh.PathPort{{Port: 80}}}, nil
		}
	})
	w := get(h, "/api/v1/path?client=deploy/web&server=svc/db:80&namespace=shop")
	var p mesh.Path
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != 200 || p.Server.Name != "db" || asked != "deploy/web svc/db:80 shop" {
		t.Errorf("%d %s, asked for %q: %v", w.Code, w.Body, asked, err)
	}
	for query, want := range map[string]struct {
		code int
		text string
	}{
		"client=web&server=nobody": {404, "see: tulle ps"},
		"client=web":               {400, "a client and a server"},
		"client=web&server=" + strings.Repeat("x", maxName+1): {400, "name both"},
		"client=web&server=db&range=5m":                       {400, "no such parameter"},
		"client=web&client=db&server=db":                      {400, "give it once"},
	} {
		if w := get(h, "/api/v1/path?"+query); w.Code != want.code || !strings.Contains(w.Body.String(), want.text) {
			t.Errorf("%.60s: %d %s, want %d and %q", query, w.Code, w.Body, want.code, want.text)
		}
	}
	without := newTestHandler(t, newTestCollector(t, nil), nil)
	if w := get(without, "/api/v1/path?client=a&server=b"); w.Code != 404 || !strings.Contains(w.Body.String(), "does not tell paths") {
		t.Errorf("without one: %d %s", w.Code, w.Body)
	}
}
