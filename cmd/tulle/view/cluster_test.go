package view

import (
	"net/http"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// On a cluster nobody is told to type what is for a host.
func TestHintsOnACluster(t *testing.T) {
	dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/tap" { // which ends, as with the control plane
			_, _ = w.Write([]byte(`{"now":"2026-11-22T12:00:00Z","range":"10s","items":[]}`))
		}
	}))
	for args, want := range map[string]string{
		"stat":        "cluster lab into the mesh with: tulle mesh NAMESPACE",
		"edges":       "tulle mesh NAMESPACE",
		"proxies":     "tulle mesh NAMESPACE",
		"identity":    "tulle mesh NAMESPACE",
		"stat *.shop": "nothing of namespace shop is in the mesh; type: tulle mesh shop",
		"tap":         "the control plane has ended; type the same again, or see why with: tulle check",
	} {
		var out strings.Builder
		env := &command.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, Cluster: "lab"}
		words := strings.Fields(args)
		for _, c := range Commands() {
			if c.Name == words[0] {
				c.Run(t.Context(), env, append(words[1:], "--run", dir))
			}
		}
		if got := out.String(); !strings.Contains(got, want) || strings.Contains(got, "sudo") {
			t.Errorf("tulle %s says %q, want %q", args, got, want)
		}
	}
}
