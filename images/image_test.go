package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
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

// The promise: the proxy's image, which every node pulls, is 12 MB at most.
func TestProxyImageIsSmall(t *testing.T) {
	dir := t.TempDir()
	program, out := filepath.Join(dir, "tulle-proxy"), filepath.Join(dir, "proxy.tar")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-tags=grpcnotrace", "-ldflags=-s -w", "-o", program, "../cmd/tulle-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := run([]string{"-o", out, "-user", "2102", "tulle.dev/proxy:1", "/tulle-proxy=" + program}); err != nil {
		t.Fatal(err)
	}
	image, err1 := os.Stat(out)
	binary, err2 := os.Stat(program)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	t.Logf("the image is %.1f MB, unpacked %.1f MB", float64(image.Size())/1e6, float64(binary.Size())/1e6)
	if image.Size() > 12e6 {
		t.Errorf("the image is %d bytes", image.Size())
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
