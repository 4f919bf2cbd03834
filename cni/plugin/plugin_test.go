package plugin

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

func call(t *testing.T, command, stdin string) (code int, stdout string) {
	t.Helper()
	var out bytes.Buffer
	code = Run(t.Context(), Call{Command: command, Netns: "/proc/self/ns/net", Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", Stdin: strings.NewReader(stdin), Stdout: &out})
	return code, out.String()
}

func TestRun(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "none")
	conf := func(more string) string {
		return `{"cniVersion":"1.0.0","name":"pods","type":"tulle-cni","socket":"` + nobody + `"` + more + `}`
	}
	const prev = `,"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}`
	meshed := `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"tulle.dev/injected":"1"}}`
	for _, c := range []struct {
		name, command, stdin string
		code                 int
		want                 string
	}{
		{"a pod without a proxy asks nobody", "ADD", conf(prev), 0, `{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}`},
		{"nor one with other annotations", "ADD", conf(prev + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":"b"}}`), 0, `"ips"`},
		{"nor one with none", "ADD", conf(prev + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null}`), 0, `"ips"`},
		{"a meshed pod does not start without the agent", "ADD", conf(prev + meshed), 1, "the pod is meshed, and its traffic cannot be redirected"},
		{"one with an init container that redirects asks nobody", "ADD",
			conf(prev + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"tulle.dev/injected":"1","tulle.dev/redirect":"init-container"}}`), 0, `"ips"`},
		{"a meshed pod ends without the agent", "DEL", conf(prev + meshed), 0, ""},
		{"first in the chain", "ADD", conf(""), 1, "must come after"},
		{"strange annotations", "ADD", conf(prev + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":[1]}`), 1, `"code":6`},
		{"no configuration", "ADD", "{", 1, `"code":6`},
		{"version", "VERSION", "", 0, `"supportedVersions":["0.3.0"`},
		{"unknown", "FROB", conf(prev), 1, `"code":4`},
		{"check", "CHECK", conf(prev + meshed), 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout := call(t, c.command, c.stdin)
			if code != c.code || !strings.Contains(stdout, c.want) || c.want == "" && stdout != "" {
				t.Errorf("exit %d: %s\nwant %d and %q", code, stdout, c.code, c.want)
			}
			if code != 0 {
				var f failure
				if err := json.Unmarshal([]byte(stdout), &f); err != nil || f.Version == "" || f.Msg == "" {
					t.Errorf("not an error of the specification: %s", stdout)
				}
			}
		})
	}
}

func FuzzRun(f *testing.F) {
	f.Add("ADD", `{"prevResult":{},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"tulle.dev/injected":"1"}}}`)
	f.Add("VERSION", "")
	f.Fuzz(func(t *testing.T, command, stdin string) {
		Run(t.Context(), Call{Command: command, Netns: "/does/not/exist", Stdin: strings.NewReader(stdin), Stdout: io.Discard})
	})
}
