package mesh

import (
	"fmt"
	"testing"
)

func TestParseNetworks(t *testing.T) {
	for _, c := range []struct {
		list, want string
		good       bool
	}{
		{"", "[]", true},
		{"10.84.0.0/16,fd84::/64", "[10.84.0.0/16 fd84::/64]", true},
		{",10.84.3.7/16,", "[10.84.0.0/16]", true},
		{"10.84.0.0", "[]", false},
		{"10.84.0.0/16,x", "[]", false},
		{"10.84.0.0/33", "[]", false},
	} {
		got, err := ParseNetworks(c.list)
		if fmt.Sprint(got) != c.want || (err == nil) != c.good {
			t.Errorf("%q: %v, %v; want %s", c.list, got, err, c.want)
		}
	}
}
