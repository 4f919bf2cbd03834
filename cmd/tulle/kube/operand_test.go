package kube

import (
	"slices"
	"strings"
	"testing"
)

func TestInMeshTerms(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"web.shop":                        "web.shop",
		"deploy/web":                      "web.here",
		"svc/web -n shop":                 "web.shop",
		"-n shop sts/db -o json":          "db.shop -o json",
		"--namespace=shop service/web":    "web.shop",
		"pod/web-1 -n shop":               "web-1",
		"ns/shop --since 5m":              "*.shop --since 5m",
		"--path /deploy/web --status 5xx": "--path /deploy/web --status 5xx",
		"--client deploy/web svc/db":      "--client web.here db.here",
		"configmap/x":                     "configmap/x",
		"deploy/":                         "deploy/",
		"svc/a/b":                         "svc/a/b",
	} {
		if got := inMeshTerms(strings.Fields(in), "here"); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
