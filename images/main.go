// Command images packs static binaries into container images, without Docker:
//
//	images -o proxy.tar -user 2102 tulle.dev/proxy:0.1.0 /tulle-proxy=bin/tulle-proxy
//
// The first file is the entry point. The tarball is an OCI image layout that
// `docker load` and `ctr images import` read as well, and depends on nothing
// but the files: the same files give the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var i image
	f := flag.NewFlagSet("images", flag.ContinueOnError)
	out := f.String("o", "", "tarball to write")
	f.StringVar(&i.user, "user", "0", "who the entry point runs as")
	f.StringVar(&i.arch, "arch", runtime.GOARCH, "what the binaries are for")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *out == "" || f.NArg() < 2 {
		return errors.New("usage: images -o TARBALL [-user UID] [-arch ARCH] NAME:TAG /PATH=FILE...")
	}
	i.name = f.Arg(0)
	if !strings.Contains(i.name[strings.LastIndex(i.name, "/")+1:], ":") {
		return fmt.Errorf("%s: has no tag", i.name)
	}
	for _, arg := range f.Args()[1:] {
		path, source, ok := strings.Cut(arg, "=")
		if !ok || !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%s: must be /PATH=FILE", arg)
		}
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		i.files = append(i.files, file{path: path, content: content})
	}
	return i.save(*out)
}

// save writes the tarball, which takes its name when it is whole.
func (i image) save(name string) error {
	part, err := os.CreateTemp(filepath.Dir(name), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	err = errors.Join(i.write(part), part.Chmod(0o644), part.Close())
	if err != nil {
		return err
	}
	return os.Rename(part.Name(), name)
}
