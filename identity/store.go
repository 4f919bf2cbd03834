package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
)

// Files in an authority's directory. The certificate in ca.crt that has the
// public half of ca.key is the root that signs; the others are trusted only.
// next.key is the key of a root that is prepared and not yet promoted.
const (
	keyFile   = "ca.key"
	rootsFile = "ca.crt"
	nextFile  = "next.key"

	maxFileSize = 64 << 10
)

// store keeps an authority in a directory. Each change is one rename, so that
// after a crash at any moment the directory holds the state before or after it.
type store struct {
	dir   string
	write func(*os.File, []byte) error // writeAll; replaced in tests of a full disk
	made  bool                         // lock made the directory
}

func writeAll(f *os.File, b []byte) error {
	_, err := f.Write(b)
	return err
}

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

// lock makes the directory if need be and keeps other processes out of it for
// the time of an Open.
func (s *store) lock() (unlock func(), err error) {
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		s.made = true
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, s.advise(fmt.Errorf("make the authority's directory: %w", err))
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, fmt.Errorf("open the authority's directory: %w", err)
	}
	info, err := dir.Stat()
	if err == nil {
		err = checkPrivate(s.dir, info, "700")
	}
	if err == nil {
		err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return func() { dir.Close() }, nil // closing ends the lock
}

// checkPrivate refuses what others than the caller may read or change.
func checkPrivate(path string, info fs.FileInfo, mode string) error {
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s is open to other users (mode %04o), who may have copied the authority's key: "+
			"if you trust them type: chmod %s %s; if not, remove the directory to make a new authority", path, perm, mode, path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to the user with id %d, not to the one that runs this (%d): type: chown %d %s",
			path, st.Uid, os.Geteuid(), os.Geteuid(), path)
	}
	return nil
}

// read returns the content of a file that only we may read.
func (s *store) read(name string) ([]byte, error) {
	// O_NONBLOCK: a FIFO in the file's place must not stall the start.
	f, err := os.OpenFile(s.path(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileSize {
		return nil, s.corrupt(name, errors.New("not a regular file of at most 64 KiB"))
	}
	if err := checkPrivate(s.path(name), info, "600"); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxFileSize))
}

func (s *store) corrupt(name string, err error) error {
	return fmt.Errorf("%s: %w: restore it from a backup, or make a new authority, after which every workload must be started anew; type: rm %s %s",
		s.path(name), err, s.path(keyFile), s.path(rootsFile))
}

// replace writes a file atomically; when it returns, the file is on the disk.
func (s *store) replace(name string, content []byte) error {
	f, err := os.CreateTemp(s.dir, name+".tmp-*") // mode 0600
	if err != nil {
		return s.advise(fmt.Errorf("write %s: %w", s.path(name), err))
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	err = s.write(f, content)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr // some file systems tell only now that they are full
	}
	if err == nil {
		err = os.Rename(f.Name(), s.path(name))
	}
	if err == nil {
		err = s.sync()
	}
	if err != nil {
		if pathError, ok := errors.AsType[*fs.PathError](err); ok {
			err = pathError.Err // the temporary file's name tells nobody anything
		}
		return s.advise(fmt.Errorf("write %s: %w", s.path(name), err))
	}
	return nil
}

// sync makes renames durable.
func (s *store) sync() error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func (s *store) advise(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: nothing was changed; free some space there and start again (type: df -h %s)", err, s.dir)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: run as root, or choose another directory", err)
	}
	return err
}

// create stores a new authority, or leaves nothing behind. The key goes first:
// a key without a certificate (we were killed in between) was never used by
// anybody, while a certificate without its key would look like a loss.
func (s *store) create(root signer) error {
	content, err := encodeKey(root.key)
	if err != nil {
		return err
	}
	err = s.replace(keyFile, content)
	if err == nil {
		err = s.writeRoots([]*x509.Certificate{root.cert})
	}
	if err != nil {
		os.Remove(s.path(keyFile))
		if s.made {
			os.Remove(s.dir) // stays if it is not empty
		}
	}
	return err
}

func (s *store) writeRoots(certs []*x509.Certificate) error {
	return s.replace(rootsFile, encodeCertificates(certs))
}

func (s *store) writeNext(key *ecdsa.PrivateKey) error {
	content, err := encodeKey(key)
	if err != nil {
		return err
	}
	return s.replace(nextFile, content)
}

// promote makes the prepared key the one that signs.
func (s *store) promote() error {
	if err := os.Rename(s.path(nextFile), s.path(keyFile)); err != nil {
		return fmt.Errorf("promote a root: %w", err)
	}
	return s.sync()
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the authority's key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func decodeKey(content []byte) (*ecdsa.PrivateKey, error) {
	block, rest := pem.Decode(content)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, errors.New("not one PEM block of type PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA P-256 key")
	}
	return key, nil
}

func decodeCertificates(content []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(content) > 0 {
		block, rest := pem.Decode(content)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not PEM blocks of type CERTIFICATE only")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, cert); len(certs) > maxRoots {
			return nil, fmt.Errorf("more than %d certificates", maxRoots)
		}
		content = rest
	}
	return certs, nil
}

// load reads the authority from its store, or creates it there. The store's
// lock is held; nobody else knows the Authority yet.
func (a *Authority) load(log *slog.Logger) error {
	keyPEM, err := a.store.read(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(a.store.path(rootsFile)); err == nil {
			return a.store.corrupt(keyFile, errors.New("missing, though ca.crt is there"))
		}
		if err := a.create(); err != nil {
			return err
		}
		log.Info("made a new authority", "dir", a.store.dir, "trust_domain", a.trustDomain)
		return nil
	}
	if err != nil {
		return err
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return a.store.corrupt(keyFile, err)
	}
	rootsPEM, err := a.store.read(rootsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return a.recreateRoot(key, log)
	}
	if err != nil {
		return err
	}
	certs, err := decodeCertificates(rootsPEM)
	if err != nil {
		return a.store.corrupt(rootsFile, err)
	}
	return a.adopt(key, certs, log)
}

// recreateRoot signs a certificate for a key that has none: we were killed half
// way through creation, or somebody removed ca.crt. The subject and the key are
// the same as before, so leaves signed earlier still verify.
func (a *Authority) recreateRoot(key *ecdsa.PrivateKey, log *slog.Logger) error {
	root, err := selfSign(key, a.trustDomain, a.now())
	if err != nil {
		return fmt.Errorf("create the authority: %w", err)
	}
	if err := a.store.writeRoots([]*x509.Certificate{root.cert}); err != nil {
		return err
	}
	log.Warn("the authority had a key and no certificate; signed a new one", "dir", a.store.dir)
	a.current = root
	a.roots.Store(newRoots(1, a.trustDomain, []*x509.Certificate{root.cert}))
	return nil
}

// adopt takes over what was on disk.
func (a *Authority) adopt(key *ecdsa.PrivateKey, certs []*x509.Certificate, log *slog.Logger) error {
	var kept []*x509.Certificate
	for _, cert := range certs {
		err := checkRoot(cert, a.trustDomain, a.now())
		if key.PublicKey.Equal(cert.PublicKey) {
			if err != nil {
				return a.store.corrupt(rootsFile, err)
			}
			a.current = signer{key: key, cert: cert}
			kept = append([]*x509.Certificate{cert}, kept...)
			continue
		}
		if err != nil {
			log.Warn("a root is no longer trusted", "file", a.store.path(rootsFile), "root", cert.Subject, "reason", err)
			continue
		}
		kept = append(kept, cert)
	}
	if a.current.cert == nil {
		return a.store.corrupt(rootsFile, errors.New("no certificate in it belongs to ca.key"))
	}
	a.adoptNext(kept)
	a.roots.Store(newRoots(1, a.trustDomain, kept))
	return nil
}

// adoptNext finds a prepared root. A key without a certificate is a Prepare
// that did not get to its end: the next one replaces it.
func (a *Authority) adoptNext(certs []*x509.Certificate) {
	content, err := a.store.read(nextFile)
	if err != nil {
		return
	}
	key, err := decodeKey(content)
	if err != nil {
		return
	}
	for _, cert := range certs {
		if key.PublicKey.Equal(cert.PublicKey) {
			a.next = &signer{key: key, cert: cert}
		}
	}
}
