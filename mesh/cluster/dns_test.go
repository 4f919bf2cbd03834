package cluster

import "testing"

func TestCutDomain(t *testing.T) {
	for name, want := range map[string]string{
		"web.shop.svc":                  "web.shop",
		"web.shop.svc.cluster.local":    "web.shop",
		"web.shop.svc.cluster.local.":   "web.shop",
		"web.shop.svc.corp.example.com": "web.shop",
		"db-0.db.shop.svc":              "db-0.db.shop",
		"web.svc.svc.cluster.local":     "web.svc", // of a namespace called svc
		"web.svc":                       "",
		"web.shop":                      "",
		"api.svc.example.com":           "",
		"api.svc-eu.example.com":        "",
		"api.eu.svc-1.example.com":      "",
		"eu.api-svc.example.com":        "",
		".svc":                          "",
		"":                              "",
	} {
		got, ok := CutDomain(name)
		if ok != (want != "") || ok && got != want || !ok && got != name {
			t.Errorf("%q: %q, %v; want %q", name, got, ok, want)
		}
	}
}
