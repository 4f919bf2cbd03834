package mesh

import (
	"strings"
	"testing"
)

func TestParseID(t *testing.T) {
	label63, domain253 := strings.Repeat("a", 63), strings.Repeat("abcd.", 50)+"abc"
	tests := []struct {
		in   string
		want ID // zero: refused
	}{
		{"spiffe://tulle.local/ns/default/sa/web", ID{"tulle.local", "default", "web"}},
		{"spiffe://x/ns/y/sa/z", ID{"x", "y", "z"}},
		{"spiffe://10.0.0.1/ns/a-b/sa/0", ID{"10.0.0.1", "a-b", "0"}},
		{"spiffe://" + domain253 + "/ns/" + label63 + "/sa/" + label63, ID{domain253, label63, label63}},

		{"", ID{}},
		{"spiffe://", ID{}},
		{"spiffe:///ns/default/sa/web", ID{}},
		{"spiffe://tulle.local", ID{}},
		{"spiffe://tulle.local/", ID{}},
		{"spiffe://tulle.local/ns/default", ID{}},
		{"spiffe://tulle.local/ns/default/sa/", ID{}},
		{"spiffe://tulle.local/ns//sa/web", ID{}},
		{"spiffe://tulle.local//ns/default/sa/web", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web/", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web/x", ID{}},
		{"spiffe://tulle.local/sa/web/ns/default", ID{}},
		{"spiffe://tulle.local/ns/./sa/web", ID{}},
		{"spiffe://tulle.local/ns/../sa/web", ID{}},
		{"spiffe://tulle.local/ns/default/sa/a.b", ID{TrustDomain: "tulle.local", Namespace: "default", Account: "a.b"}},
		{"spiffe://tulle.local/ns/default/sa/..", ID{}},
		{"spiffe://tulle.local/ns/default/sa/a..b", ID{}},
		{"spiffe://tulle.local/ns/de.fault/sa/a", ID{}},
		{"spiffe://tulle.local/ns/default/sa/a_b", ID{}},
		{"spiffe://tulle.local/ns/default/sa/-web", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web-", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web%2fx", ID{}},
		{"spiffe://tulle.local/ns/default/sa/*", ID{}},
		{"spiffe://tulle.local/ns/default/sa/WEB", ID{}},
		{"spiffe://tulle.local/NS/default/SA/web", ID{}},
		{"SPIFFE://tulle.local/ns/default/sa/web", ID{}},
		{"spiffe://TULLE.local/ns/default/sa/web", ID{}},
		{"spiffe://tulle.local./ns/default/sa/web", ID{}},
		{"spiffe://.tulle.local/ns/default/sa/web", ID{}},
		{"spiffe://tulle..local/ns/default/sa/web", ID{}},
		{"spiffe://tulle.local:1/ns/default/sa/web", ID{}},
		{"spiffe://a@tulle.local/ns/default/sa/web", ID{}},
		{"spiffe://[::1]/ns/default/sa/web", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web?", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web#", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web\x00", ID{}},
		{"spiffe://tulle.local/ns/default/sa/web\n", ID{}},
		{" spiffe://tulle.local/ns/default/sa/web", ID{}},
		{"spiffe://tulle.local/ns/default/sa/wéb", ID{}},
		{"spiffe://tulle.local/ns/default/sa/" + label63 + "a", ID{}},
		{"spiffe://" + domain253 + "d/ns/default/sa/web", ID{}},
		{"https://tulle.local/ns/default/sa/web", ID{}},
		{"tulle.local/ns/default/sa/web", ID{}},
	}
	for _, tt := range tests {
		got, err := ParseID(tt.in)
		switch {
		case tt.want.IsZero() && err == nil:
			t.Errorf("ParseID(%q) = %v, want it refused", tt.in, got)
		case got != tt.want:
			t.Errorf("ParseID(%q) = %v, %v, want %v", tt.in, got, err, tt.want)
		}
	}
	if _, err := ParseID("spiffe://" + strings.Repeat("/", 1<<20)); err == nil || len(err.Error()) > 200 {
		t.Errorf("a megabyte: error of %d bytes, want a short one", len(err.Error()))
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{
		"spiffe://tulle.local/ns/default/sa/web", "spiffe://tulle.local/ns/default/sa/web/", "spiffe://a/ns/b/sa/c%2f",
		"SPIFFE://a/ns/b/sa/c", "spiffe://a/ns/../sa/c", "spiffe://a:1/ns/b/sa/c", "spiffe://a/ns/b/sa/\x00", "spiffe://*/ns/*/sa/*",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			if !id.IsZero() {
				t.Errorf("refused %q, and yet named %v", s, id)
			}
			return
		}
		// One name has one spelling, in a certificate too.
		if id.String() != s || id.URL().String() != s {
			t.Errorf("%q reads as %q, as a URL %q", s, id, id.URL())
		}
		if err := id.Validate(); err != nil {
			t.Errorf("%q: accepted, but not valid: %v", s, err)
		}
	})
}

func TestIDString(t *testing.T) {
	if got := (ID{}).String(); got != "" {
		t.Errorf("nobody is %q, want nothing", got)
	}
	if got, want := ControlID("tulle.local").String(), "spiffe://tulle.local/ns/tulle/sa/control"; got != want {
		t.Errorf("control is %q, want %q", got, want)
	}
	if err := ControlID("tulle.local").Validate(); err != nil {
		t.Error(err)
	}
	err := (ID{TrustDomain: "A", Namespace: "B", Account: "C"}).Validate()
	for _, part := range []string{"trust domain", "namespace", "account"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not name the %s", err, part)
		}
	}
}
