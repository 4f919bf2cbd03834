package cluster

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestParsePorts(t *testing.T) {
	for _, tt := range []struct{ in, want, err string }{
		{in: "3306", want: "[3306]"},
		{in: "1,65535", want: "[1 65535]"},
		{in: " 3306 , 4000-4010,7-7", want: "[3306 4000-4010 7]"},
		{in: "", err: "not a port"},
		{in: "0", err: `"0" is not a port`},
		{in: "70000", err: `"70000" is not a port`},
		{in: "-1", err: "not a port"},
		{in: "+1", err: "not a port"},
		{in: "080", err: "not a port"},
		{in: "80,", err: "not a port"},
		{in: "http", err: "not a port"},
		{in: "9-8", err: "ends before it begins"},
		{in: "1-0", err: "not a port"},
		{in: "1-2-3", err: "not a port"},
		{in: "80\n81", err: `"80\n81" is not a port`},
		{in: `80"`, err: `"80\"" is not a port`},
		{in: strings.Repeat("1,", 256) + "1", err: "more than 256"},
	} {
		got, err := ParsePorts(tt.in)
		switch {
		case tt.err == "" && (err != nil || fmt.Sprint(got) != tt.want):
			t.Errorf("%q: %v, %v; want %s", tt.in, got, err, tt.want)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: %v, want an error with %s", tt.in, err, tt.err)
		}
	}
}

func TestParseProtocols(t *testing.T) {
	got, err := ParseProtocols("8080=http/1, 9090=http/2,5432=tcp")
	want := map[uint16]mesh.Protocol{8080: mesh.HTTP1, 9090: mesh.HTTP2, 5432: mesh.TCP}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v", got, err)
	}
	for in, want := range map[string]string{
		"":                  "PORT=PROTOCOL",
		"80":                "PORT=PROTOCOL",
		"0=tcp":             "not a port",
		"70000=tcp":         "not a port",
		"80=udp":            `"udp" is not a protocol`,
		"80=":               "not a protocol",
		"80=tcp,80=http/1":  "twice",
		"80=tcp\n90=http/1": "not a protocol",
	} {
		if _, err := ParseProtocols(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %s", in, err, want)
		}
	}
}

func TestRange(t *testing.T) {
	r := Ports{First: 10, Last: 20}
	for port, want := range map[uint16]bool{9: false, 10: true, 15: true, 20: true, 21: false} {
		if r.Contains(port) != want {
			t.Errorf("%v contains %d: %v", r, port, !want)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	f.Add("3306,4000-4010")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParsePorts(s)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.First == 0 || p.Last < p.First {
				t.Errorf("%q: %v", s, p)
			}
		}
	})
}
