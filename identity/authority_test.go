package identity

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestSign(t *testing.T) {
	clock := newClock()
	a := newAuthority(t, clock)
	key := newKey(t)
	issued, err := a.Sign(newCSR(t, key, webID), webID, clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(issued.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(issued.Chain) != 1 {
		t.Errorf("%d certificates, want the leaf only", len(issued.Chain))
	}
	if got := leaf.NotAfter.Sub(clock.Now()); got != LeafLife {
		t.Errorf("good for %v, want %v", got, LeafLife)
	}
	if !leaf.NotAfter.Equal(issued.NotAfter) || !leaf.NotBefore.Equal(issued.NotBefore) {
		t.Errorf("issued says %v to %v, the leaf %v to %v", issued.NotBefore, issued.NotAfter, leaf.NotBefore, leaf.NotAfter)
	}
	if len(leaf.Subject.Names) != 0 {
		t.Errorf("subject %q, want none", leaf.Subject)
	}
	if n := leaf.SerialNumber.BitLen(); n > 128 || n < 64 {
		t.Errorf("serial of %d bits", n)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("certifies another key")
	}
	if len(leaf.Raw) > 600 {
		t.Errorf("leaf has %d bytes: it is sent in every handshake", len(leaf.Raw))
	}
	// A peer whose clock is ten minutes wrong, either way, still accepts it.
	for _, skew := range []time.Duration{0, -10 * time.Minute, 10 * time.Minute} {
		if id, err := verify(issued.Chain, a.Roots(), clock.Now().Add(skew)); err != nil || id != webID {
			t.Errorf("clock off by %v: %v, %v", skew, id, err)
		}
	}
}

func TestSignNamesOnlyValidIDs(t *testing.T) {
	clock := newClock()
	a := newAuthority(t, clock)
	csr := newCSR(t, newKey(t), mesh.ID{})
	for _, id := range []mesh.ID{
		{},
		{TrustDomain: "other.local", Namespace: "default", Account: "web"},
		{TrustDomain: testDomain, Namespace: "default", Account: "web/../admin"},
		{TrustDomain: testDomain, Namespace: "", Account: "web"},
	} {
		if _, err := a.Sign(csr, id, clock.Now()); err == nil {
			t.Errorf("signed for %q", id)
		}
	}
}

func TestSerialsDiffer(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		s := newSerial()
		if s.Sign() <= 0 || seen[s.String()] {
			t.Fatalf("serial %v", s)
		}
		seen[s.String()] = true
	}
}

func TestLeafNeverOutlivesTheRoot(t *testing.T) {
	clock := newClock()
	a := newAuthority(t, clock)
	end := a.Roots().Certificates[0].NotAfter
	clock.Advance(end.Sub(clock.Now()) - time.Hour)
	issued, err := a.Sign(newCSR(t, newKey(t), webID), webID, clock.Now())
	if err != nil || issued.NotAfter.After(end) {
		t.Errorf("until %v, %v; the root ends on %v", issued.NotAfter, err, end)
	}
	clock.Advance(2 * time.Hour)
	if _, err := a.Sign(newCSR(t, newKey(t), webID), webID, clock.Now()); err == nil {
		t.Error("signed by a root that has ended")
	}
}

// A rotation under way never leaves a moment at which a leaf signed before, by
// either root, is refused.
func TestRotation(t *testing.T) {
	for _, kind := range []string{"memory", "disk"} {
		t.Run(kind, func(t *testing.T) {
			clock := newClock()
			config := Config{TrustDomain: testDomain, Now: clock.Now, Log: discard}
			if kind == "disk" {
				config.Dir = t.TempDir() + "/ca"
			}
			a, err := Open(config)
			if err != nil {
				t.Fatal(err)
			}
			reopen := func() {
				if kind == "disk" {
					if a, err = Open(config); err != nil {
						t.Fatal(err)
					}
				}
			}
			accepted := func(issued *Issued) bool {
				_, err := verify(issued.Chain, a.Roots(), clock.Now())
				return err == nil
			}
			sign := func() *Issued {
				issued, err := a.Sign(newCSR(t, newKey(t), webID), webID, clock.Now())
				if err != nil {
					t.Fatal(err)
				}
				return issued
			}
			old, first := a.Roots().Certificates[0], sign()
			if err := a.Promote(); err == nil {
				t.Error("promoted a root that was not prepared")
			}
			_, changed := a.Watch()
			next, err := a.Prepare()
			if err != nil {
				t.Fatal(err)
			}
			<-changed
			reopen()
			if !slices.ContainsFunc(a.Roots().Certificates, next.Equal) {
				t.Error("the prepared root is not trusted")
			}
			second := sign() // still by the old root
			if err := a.Promote(); err != nil {
				t.Fatal(err)
			}
			reopen()
			third := sign()
			if !a.Roots().Certificates[0].Equal(next) {
				t.Error("the promoted root does not come first")
			}
			for i, issued := range []*Issued{first, second, third} {
				if !accepted(issued) {
					t.Errorf("leaf %d is refused half way", i)
				}
			}
			if err := a.RemoveRoot(next); err == nil {
				t.Error("removed the root that signs")
			}
			if err := a.RemoveRoot(old); err != nil {
				t.Fatal(err)
			}
			reopen()
			if accepted(first) || accepted(second) || !accepted(third) {
				t.Error("after the removal only the new root's leaves are to be accepted")
			}
			if err := a.RemoveRoot(old); err == nil {
				t.Error("removed a root twice")
			}
		})
	}
}

func TestPrepareTwiceForgetsTheFirst(t *testing.T) {
	a := newAuthority(t, newClock())
	for range 2 * maxRoots {
		if _, err := a.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.Roots().Certificates); n != 2 {
		t.Errorf("%d roots are trusted, want 2", n)
	}
}

func TestAddRoot(t *testing.T) {
	clock := newClock()
	a := newAuthority(t, clock)
	other := newAuthority(t, clock).Roots().Certificates[0]
	revision := a.Roots().Revision
	for range 2 { // twice is no error, and no change
		if err := a.AddRoot(other); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.Roots(); len(got.Certificates) != 2 || got.Revision != revision+1 {
		t.Errorf("%d roots, revision %d, want 2 and %d", len(got.Certificates), got.Revision, revision+1)
	}
	if m := a.Roots().Message(); len(m.GetCertificates()) != 2 || m.GetTrustDomain() != testDomain || m.GetRevision() != revision+1 {
		t.Errorf("message %v", m)
	}

	stranger, err := Open(Config{TrustDomain: "other.local", Now: clock.Now, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.AddRoot(stranger.Roots().Certificates[0]); err == nil || !strings.Contains(err.Error(), "other.local") {
		t.Errorf("root of another trust domain: %v", err)
	}
	issued, err := a.Sign(newCSR(t, newKey(t), webID), webID, clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(issued.Chain[0])
	if err := a.AddRoot(leaf); err == nil {
		t.Error("a leaf became a root")
	}
	for len(a.Roots().Certificates) < maxRoots {
		if err := a.AddRoot(newAuthority(t, clock).Roots().Certificates[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.AddRoot(newAuthority(t, clock).Roots().Certificates[0]); err == nil {
		t.Error("the number of roots is not bounded")
	}
	if _, err := a.Prepare(); err == nil {
		t.Error("Prepare ignores the bound")
	}
}

func TestOpenChecksItsConfig(t *testing.T) {
	for _, domain := range []string{"", "UPPER", "a b", "tulle.local/x"} {
		if _, err := Open(Config{TrustDomain: domain}); err == nil {
			t.Errorf("trust domain %q accepted", domain)
		}
	}
}

func TestErrCSRIsTold(t *testing.T) {
	clock := newClock()
	a := newAuthority(t, clock)
	if _, err := a.Sign([]byte("garbage"), webID, clock.Now()); !errors.Is(err, ErrCSR) {
		t.Errorf("%v does not wrap ErrCSR", err)
	}
}
