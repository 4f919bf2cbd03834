package dashboard

import (
	"testing"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

func TestWorkloadsComeAndGo(t *testing.T) {
	workload := func(state string) []*tullev1.Workload {
		return []*tullev1.Workload{{Replica: "web-1", Service: "web", State: state}}
	}
	for _, c := range []struct {
		name          string
		before, after []*tullev1.Workload
		want          string // "": no change
		good          bool
	}{
		{"appears", nil, workload("starting"), "web-1 has started", true},
		{"appears ready", nil, workload("ready"), "web-1 has started and is ready", true},
		{"becomes ready", workload("starting"), workload("ready"), "web-1 is ready", true},
		{"is not ready any more", workload("ready"), workload("lost"), "web-1 is not ready any more", false},
		{"leaves", workload("ready"), nil, "web-1 has gone", true},
		{"is done", workload("ready"), workload("exited (0)"), "web-1 has gone, exited (0)", true},
		{"is killed", workload("ready"), workload("exited (137)"), "web-1 has gone, exited (137)", false},
		{"is gone already", workload("exited (1)"), workload("exited (1)"), "", false},
		{"stays", workload("ready"), workload("running"), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var seen changes
			seen.seeReplicas(time.Now(), c.before)
			seen.seeReplicas(time.Now(), c.after)
			var got Change
			if list := seen.newest(); len(list) > 0 {
				got = list[0]
			}
			if got.Text != c.want || got.Good != c.good || len(seen.list) > 1 {
				t.Errorf("%q, good: %v, want %q, %v", got.Text, got.Good, c.want, c.good)
			}
			if c.want != "" && (got.Service != "web" || got.Workload != "web-1") {
				t.Errorf("it is about %s of %s", got.Workload, got.Service)
			}
		})
	}
}
