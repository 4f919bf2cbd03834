package dashboard

import (
	"strings"
	"testing"
)

// The account of an identity may be as long as any name; labels are bounded otherwise.
func TestWords(t *testing.T) {
	w := words{}
	long := "spiffe://cluster.local/ns/shop/sa/" + strings.Repeat("a", 250)
	if got, err := w.identity([]byte(long)); err != nil || got != long {
		t.Errorf("identity: %q, %v", got, err)
	}
	if len(w) != 0 {
		t.Error("a rare long word is kept")
	}
	if _, err := w.of([]byte(long)); err == nil {
		t.Error("a label as long as that is taken")
	}
	if _, err := w.identity([]byte(strings.Repeat("a", maxIdentity+1))); err == nil {
		t.Error("an identity of any length is taken")
	}
	for _, bad := range []string{"\xff", strings.Repeat("\xff", 300)} {
		if _, err := w.identity([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
