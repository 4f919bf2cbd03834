package journal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRecordSurvivesAndKeepsTheFirstOldValue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "restore.json")
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	first := Change{Kind: Sysctl, Name: "net/ipv4/ip_forward", Old: "0", New: "1"}
	link := Change{Kind: Link, Name: "tulle0"}
	if err := j.Record(first, link); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Record(Change{Kind: Sysctl, Name: "net/ipv4/ip_forward", Old: "1", New: "1"}); err != nil {
		t.Fatal(err)
	}
	if got, want := again.Changes(), []Change{first, link}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestUndoGoesBackwardsAndKeepsWhatFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "restore.json")
	j, _ := Open(path)
	if err := j.Record(Change{Kind: Link, Name: "a"}, Change{Kind: Link, Name: "b"}, Change{Kind: Link, Name: "c"}); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	var order []string
	err := j.Undo(func(c Change) error {
		order = append(order, c.Name)
		if c.Name == "b" {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) || !slices.Equal(order, []string{"c", "b", "a"}) {
		t.Errorf("err %v, order %v", err, order)
	}
	again, _ := Open(path)
	if got := again.Changes(); len(got) != 1 || got[0].Name != "b" {
		t.Errorf("left: %v", got)
	}
}

// TestUndoneTakesNoRoom: where nothing is left to undo there is no file.
func TestUndoneTakesNoRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "restore.json")
	j, _ := Open(path)
	if err := j.Record(Change{Kind: Link, Name: "a"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := j.Undo(func(Change) error { return nil }); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("left: %v", err)
		}
	}
}

func TestOpen(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       int
		wantErr    bool
	}{
		{"after a reboot only directories count", `{"boot":"another","changes":[{"kind":"link","name":"x"},{"kind":"dir","name":"y"}]}`, 1, false},
		{"garbage", "{", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "restore.json")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			j, err := Open(path)
			if (err != nil) != tc.wantErr {
				t.Fatalf("error %v", err)
			}
			if err == nil && len(j.Changes()) != tc.want {
				t.Errorf("got %v", j.Changes())
			}
		})
	}
}
