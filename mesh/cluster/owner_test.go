package cluster

import "testing"

func TestOwner(t *testing.T) {
	for _, tt := range []struct{ kind, name, hash, pod, want string }{
		{"ReplicaSet", "web-5d4f8c7b9", "5d4f8c7b9", "web-5d4f8c7b9-x2x4z", "web"},
		{"ReplicaSet", "by-hand", "", "by-hand-x2x4z", "by-hand"},
		{"StatefulSet", "db", "", "db-0", "db"},
		{"DaemonSet", "agent", "", "agent-x2x4z", "agent"},
		{"Job", "report-29381234", "", "report-29381234-x2x4z", "report"},
		{"Job", "migrate-7", "", "migrate-7-x2x4z", "migrate-7"},
		{"Job", "29381234", "", "29381234-x", "29381234"},
		{"", "", "", "alone", "alone"},
	} {
		if got := Owner(tt.kind, tt.name, tt.hash, tt.pod); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.kind, tt.name, got, tt.want)
		}
	}
}
