package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unpack reads a tar into a map.
func unpack(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 || h.Uid != 0 {
			t.Errorf("%s: has a date (%s) or an owner (%d)", h.Name, h.ModTime, h.Uid)
		}
		files[h.Name] = content
	}
}

type descriptor struct {
	Digest      string
	Size        int
	Annotations map[string]string
}

// follow reads the blob that d describes, and checks that it is the one.
func follow(t *testing.T, files map[string][]byte, d descriptor) []byte {
	t.Helper()
	content, ok := files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
	if !ok || len(content) != d.Size || digest(content) != d.Digest {
		t.Fatalf("blob %+v is missing or another", d)
	}
	return content
}

func decode[T any](t *testing.T, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestImage follows the references as a container runtime does.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("machine code"), 0o700); err != nil {
		t.Fatal(err)
	}
	var outputs [2][]byte
	for i := range outputs {
		out := filepath.Join(dir, "image.tar")
		if err := run([]string{"-o", out, "-user", "2102", "-arch", "arm64", "host.example:5000/a/b:1", "/bin/run=" + program, "/a=" + program}); err != nil {
			t.Fatal(err)
		}
		outputs[i], _ = os.ReadFile(out)
	}
	if !bytes.Equal(outputs[0], outputs[1]) {
		t.Error("the same files give different images")
	}

	files := unpack(t, bytes.NewReader(outputs[0]))
	index := decode[struct{ Manifests []descriptor }](t, files["index.json"])
	if got := index.Manifests[0].Annotations["io.containerd.image.name"]; got != "host.example:5000/a/b:1" {
		t.Errorf("name: %q", got)
	}
	manifest := decode[struct {
		Config descriptor
		Layers []descriptor
	}](t, follow(t, files, index.Manifests[0]))
	config := decode[struct {
		Architecture string
		Config       struct {
			Entrypoint []string
			User       string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}](t, follow(t, files, manifest.Config))
	if config.Architecture != "arm64" || config.Config.User != "2102" || config.Config.Entrypoint[0] != "/bin/run" {
		t.Errorf("config: %+v", config)
	}
	z, err := gzip.NewReader(bytes.NewReader(follow(t, files, manifest.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(z)
	if err != nil || digest(layer) != config.Rootfs.DiffIDs[0] {
		t.Errorf("layer is not what the config says: %v", err)
	}
	if got := unpack(t, bytes.NewReader(layer)); string(got["bin/run"]) != "machine code" || string(got["a"]) != "machine code" {
		t.Errorf("layer: %q", got)
	}
}

func TestBadCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "usage"},
		{[]string{"-o", "x", "host:5000/name", "/a=b"}, "has no tag"},
		{[]string{"-o", "x", "name:1", "a=b"}, "must be /PATH=FILE"},
		{[]string{"-o", "x", "name:1", "/a=/does/not/exist"}, "no such file"},
	} {
		if err := run(c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}
