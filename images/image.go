package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// image is one layer of files and how to run the first of them.
type image struct {
	name  string // with a tag
	user  string // uid, perhaps with :gid
	arch  string // as Go calls it, which is as OCI does
	files []file
}

type file struct {
	path    string // absolute
	content []byte
}

// blob is content that goes by its digest.
type blob struct {
	mediaType string
	content   []byte
}

// The media types of the OCI image specification, version 1.
const (
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
)

func (b blob) digest() string { return digest(b.content) }

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// location is where the blob is in an OCI image layout.
func (b blob) location() string { return "blobs/" + strings.Replace(b.digest(), ":", "/", 1) }

// object is JSON with sorted keys, as encoding/json writes maps.
type object = map[string]any

func (b blob) descriptor() object {
	return object{"mediaType": b.mediaType, "digest": b.digest(), "size": len(b.content)}
}

func document(mediaType string, content object) blob {
	raw, err := json.Marshal(content)
	if err != nil {
		panic(err) // maps of strings and numbers only
	}
	return blob{mediaType, raw}
}

// write writes the image as a tarball: an OCI layout, and beside it the list
// that older versions of Docker look for.
func (i image) write(w io.Writer) error {
	plain, err := i.layer()
	if err != nil {
		return err
	}
	packed, err := compress(plain)
	if err != nil {
		return err
	}
	layer := blob{typeLayer, packed}
	config := document(typeConfig, object{
		"architecture": i.arch,
		"os":           "linux",
		"config":       object{"Entrypoint": []string{i.files[0].path}, "User": i.user, "WorkingDir": "/"},
		"rootfs":       object{"type": "layers", "diff_ids": []string{digest(plain)}},
	})
	manifest := document(typeManifest, object{
		"schemaVersion": 2,
		"mediaType":     typeManifest,
		"config":        config.descriptor(),
		"layers":        []object{layer.descriptor()},
	})
	reference := manifest.descriptor()
	reference["annotations"] = object{
		"io.containerd.image.name":          i.name,
		"org.opencontainers.image.ref.name": i.name[strings.LastIndex(i.name, ":")+1:],
	}
	index := document(typeIndex, object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []object{reference}})
	docker, err := json.Marshal([]object{{"Config": config.location(), "RepoTags": []string{i.name}, "Layers": []string{layer.location()}}})
	if err != nil {
		return err
	}
	return archive(w, []file{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", index.content},
		{manifest.location(), manifest.content},
		{config.location(), config.content},
		{layer.location(), layer.content},
		{"manifest.json", docker},
	}, 0o644)
}

// layer is the image's file system.
func (i image) layer() ([]byte, error) {
	var b bytes.Buffer
	files := slices.SortedFunc(slices.Values(i.files), func(a, b file) int { return cmp.Compare(a.path, b.path) })
	err := archive(&b, files, 0o755)
	return b.Bytes(), err
}

// archive writes a tar of files with all that could differ from one time to
// the next, owners and dates, set to zero.
func archive(w io.Writer, files []file, mode int64) error {
	t := tar.NewWriter(w)
	made := map[string]bool{".": true, "/": true}
	for _, f := range files {
		if err := makeParents(t, path.Dir(f.path), made); err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(f.path, "/"), Mode: mode, Size: int64(len(f.content)), Format: tar.FormatUSTAR}
		if err := t.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		if _, err := t.Write(f.content); err != nil {
			return err
		}
	}
	return t.Close()
}

func makeParents(t *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := makeParents(t, path.Dir(dir), made); err != nil {
		return err
	}
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, Format: tar.FormatUSTAR})
}

func compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(content); err != nil {
		return nil, err
	}
	err = z.Close()
	return b.Bytes(), err
}
