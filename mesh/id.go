package mesh

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ID names a workload the way SPIFFE does:
// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT. The zero ID is nobody.
// IDs are comparable with ==.
type ID struct {
	TrustDomain string
	Namespace   string
	Account     string
}

// ControlID is the identity under which the control plane of a trust domain serves.
func ControlID(trustDomain string) ID {
	return ID{TrustDomain: trustDomain, Namespace: "tulle", Account: "control"}
}

// IsZero tells whether the ID names nobody.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the SPIFFE ID, or "" for nobody.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.Account
}

// URL returns the SPIFFE ID as the URI SAN of a certificate carries it.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.Account}
}

// Validate reports why the ID could not stand in a certificate.
func (id ID) Validate() error {
	var errs []error
	if err := checkTrustDomain(id.TrustDomain); err != nil {
		errs = append(errs, err)
	}
	if err := CheckName(id.Namespace); err != nil {
		errs = append(errs, fmt.Errorf("namespace: %w", err))
	}
	if err := CheckDottedName(id.Account); err != nil {
		errs = append(errs, fmt.Errorf("account: %w", err))
	}
	return errors.Join(errs...)
}

// maxIDLength is what SPIFFE-ID section 2.3 lets an identity have, in bytes.
const maxIDLength = 2048

// ParseID reads the one spelling that String writes and refuses every other
// one: two spellings of a name would be two names to a policy
// (SPIFFE-ID section 2: no percent-encoding, no trailing slash, no dot segments).
func ParseID(s string) (ID, error) {
	if len(s) > maxIDLength {
		return ID{}, fmt.Errorf("identity of %d bytes: at most %d are allowed", len(s), maxIDLength)
	}
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("identity %q: does not start with spiffe://", s)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("identity %q: not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT", s)
	}
	id := ID{TrustDomain: parts[0], Namespace: parts[2], Account: parts[4]}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("identity %q: %w", s, err)
	}
	return id, nil
}

// CheckDottedName reports why s cannot name an account, a workload or a service:
// Kubernetes lets the names of service accounts and of pods have dots (RFC 1123
// subdomains), and a service there is NAME.NAMESPACE.
func CheckDottedName(s string) error {
	if s == "" || len(s) > 253 {
		return fmt.Errorf("name %q: must have 1 to 253 characters", s)
	}
	for label := range strings.SplitSeq(s, ".") {
		if err := CheckName(label); err != nil {
			return err
		}
	}
	return nil
}

// CheckName reports why s cannot name a namespace: names are DNS labels
// (RFC 1123), since they turn up in host names.
func CheckName(s string) error {
	if s == "" || len(s) > 63 {
		return fmt.Errorf("name %q: must have 1 to 63 characters", s)
	}
	for i := range len(s) {
		c := s[i]
		inner := c == '-' && i > 0 && i < len(s)-1
		if !inner && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("name %q: only a-z, 0-9 and inner '-' are allowed", s)
		}
	}
	return nil
}

func checkTrustDomain(s string) error {
	if s == "" || len(s) > 253 {
		return fmt.Errorf("trust domain %q: must have 1 to 253 characters", s)
	}
	for label := range strings.SplitSeq(s, ".") {
		if CheckName(label) != nil {
			return fmt.Errorf("trust domain %q: must be a lower-case domain name", s)
		}
	}
	return nil
}
