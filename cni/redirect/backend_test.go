package redirect

import (
	"errors"
	"strings"
	"testing"
)

type fakeBackend struct {
	Backend
	name  string
	probe error
}

func (f fakeBackend) Name() string { return f.name }
func (f fakeBackend) Probe() error { return f.probe }

func TestPick(t *testing.T) {
	broken := errors.New("type: fix it")
	for name, tc := range map[string]struct {
		want          string
		first, second error // what the probes say
		backend       string
		says          string // part of the reason, or of the error where there is no backend
	}{
		"auto takes the first":          {Auto, nil, nil, "first", "first choice"},
		"auto takes the second":         {Auto, broken, nil, "second", "first: type: fix it"},
		"auto finds none":               {Auto, broken, errors.New("type: install it"), "", "first: type: fix it; second: type: install it"},
		"named":                         {"second", nil, nil, "second", "asked for"},
		"named and broken":              {"first", broken, nil, "", "first: type: fix it"},
		"unknown":                       {"third", nil, nil, "", `redirect "third": no such backend; use auto, first or second`},
		"nothing is asked for means so": {"", nil, nil, "", `redirect ""`},
	} {
		t.Run(name, func(t *testing.T) {
			backend, reason, err := pick(tc.want, []Backend{fakeBackend{name: "first", probe: tc.first}, fakeBackend{name: "second", probe: tc.second}})
			if tc.backend == "" {
				if err == nil || backend != nil || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("got %v, %v, want an error with %q", backend, err, tc.says)
				}
				return
			}
			if err != nil || backend.Name() != tc.backend || !strings.Contains(reason, tc.says) {
				t.Fatalf("got %v, %q, %v, want %s because %q", backend, reason, err, tc.backend, tc.says)
			}
		})
	}
}
