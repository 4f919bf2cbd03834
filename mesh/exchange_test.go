package mesh

import (
	"fmt"
	"testing"
)

// Every value has a name of its own, and one out of range does not panic.
func TestNames(t *testing.T) {
	for _, tt := range []struct {
		kind   string
		count  int
		name   func(uint8) string
		beyond string
	}{
		{"direction", 2, func(i uint8) string { return Direction(i).String() }, "outbound"},
		{"protocol", int(TLS) + 1, func(i uint8) string { return Protocol(i).String() }, "unknown"},
		{"security", int(Local) + 1, func(i uint8) string { return Security(i).String() }, "plaintext"},
		{"outcome", int(TimedOut) + 1, func(i uint8) string { return Outcome(i).String() }, "app-failure"},
	} {
		seen := make(map[string]bool)
		for i := range tt.count {
			name := tt.name(uint8(i))
			if name == "" || seen[name] {
				t.Errorf("%s %d is named %q", tt.kind, i, name)
			}
			seen[name] = true
		}
		if got := tt.name(255); got != tt.beyond {
			t.Errorf("%s 255 is %q, want %q", tt.kind, got, tt.beyond)
		}
	}
}

func TestZeroExchangeIsNotMoreThanItSays(t *testing.T) {
	var e Exchange
	got := fmt.Sprint(e.Direction, e.Protocol, e.Security, e.Client.ID)
	if want := "outbound unknown plaintext "; got != want {
		t.Errorf("zero exchange reads %q, want %q", got, want)
	}
}
