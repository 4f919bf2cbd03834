package redirect

import (
	"strings"
	"testing"
)

func TestApplied(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		want := l.backend.Name()
		if strings.HasPrefix(want, "iptables") {
			want = ""
		}
		for _, step := range []struct {
			name string
			do   func() error
			want string
		}{
			{"before", func() error { return nil }, ""},
			{"applied", func() error { return l.backend.Apply(Rules{}) }, want},
			{"applied again", func() error { return l.backend.Apply(Rules{}) }, want},
			{"removed", l.backend.Remove, ""},
		} {
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			if got, err := l.node.Applied(l.workload); got != step.want || err != nil {
				t.Errorf("%s: %q, %v, want %q", step.name, got, err, step.want)
			}
			inUse := 0
			if step.want == "ebpf" {
				inUse = 1
			}
			if got, err := l.node.InUse(); got != inUse || err != nil {
				t.Errorf("%s: %d namespaces in use, %v, want %d", step.name, got, err, inUse)
			}
			if got, err := l.node.Applied(l.outside); got != "" || err != nil {
				t.Errorf("%s: %q, %v in a namespace that nobody asked for", step.name, got, err)
			}
		}
	})
}
