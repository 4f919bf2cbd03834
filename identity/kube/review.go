package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tulle-mesh/tulle/identity"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// Where the API server says which pod a token is bound to
// (k8s.io/apiserver/pkg/authentication/serviceaccount).
const (
	podNameKey = "authentication.kubernetes.io/pod-name"
	podUIDKey  = "authentication.kubernetes.io/pod-uid"

	userPrefix = "system:serviceaccount:"

	reviewTimeout = 10 * time.Second
	// maxToken bounds a token in bytes; one of a service account has about 1,200.
	maxToken = 16 << 10
)

// ReviewerConfig is what NewReviewer needs.
type ReviewerConfig struct {
	Client      kubernetes.Interface
	TrustDomain string
	// PodAddrs returns the addresses of a pod, none if they are not known (yet).
	// A token is refused from an address that is none of them. nil: tokens are
	// taken from any address.
	PodAddrs func(namespace, name, uid string) []netip.Addr
}

// Reviewer proves the holders of service account tokens.
type Reviewer struct{ config ReviewerConfig }

// NewReviewer returns a Reviewer.
func NewReviewer(config ReviewerConfig) *Reviewer { return &Reviewer{config: config} }

// Prove returns who the holder of a token is. Errors about the token wrap
// identity.ErrToken; what they say is for the log, not for the caller.
func (r *Reviewer) Prove(ctx context.Context, token string) (mesh.ID, error) {
	if len(token) > maxToken {
		return mesh.ID{}, fmt.Errorf("%w: it has %d bytes", identity.ErrToken, len(token))
	}
	asking, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	review, err := r.config.Client.AuthenticationV1().TokenReviews().Create(asking, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{cluster.TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return mesh.ID{}, fmt.Errorf("ask the API server whose a token is: %w", err)
	}
	id, pod, err := readReview(&review.Status, r.config.TrustDomain)
	if err != nil {
		return mesh.ID{}, fmt.Errorf("%w: %w", identity.ErrToken, err)
	}
	return id, r.checkAddress(id, pod, identity.CallerAddr(ctx))
}

// boundPod is the pod that a token was made for.
type boundPod struct{ name, uid string }

// readReview takes nothing for granted: whoever answers TokenReviews may be a
// webhook of the cluster's, too.
func readReview(s *authenticationv1.TokenReviewStatus, trustDomain string) (mesh.ID, boundPod, error) {
	none := func(format string, args ...any) (mesh.ID, boundPod, error) {
		return mesh.ID{}, boundPod{}, fmt.Errorf(format, args...)
	}
	switch {
	case !s.Authenticated:
		return none("not authentic: %s", s.Error)
	case s.Error != "":
		return none("%s", s.Error)
	case !slices.Contains(s.Audiences, cluster.TokenAudience):
		return none("it is for %q, not for %q", s.Audiences, cluster.TokenAudience)
	}
	account, ok := strings.CutPrefix(s.User.Username, userPrefix)
	namespace, name, ok2 := strings.Cut(account, ":")
	if !ok || !ok2 {
		return none("it is of %q, which is no service account", s.User.Username)
	}
	id := mesh.ID{TrustDomain: trustDomain, Namespace: namespace, Account: name}
	if err := id.Validate(); err != nil {
		return none("it is of %q: %w", s.User.Username, err)
	}
	pod := boundPod{name: only(s.User.Extra[podNameKey]), uid: only(s.User.Extra[podUIDKey])}
	if pod.name == "" || pod.uid == "" {
		return none("it is of %s, but bound to no pod", id)
	}
	return id, pod, nil
}

func only(values authenticationv1.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

var errAddress = errors.New("it was made for another pod")

// checkAddress refuses a token that another pod has got hold of. A pod whose
// address is not known yet has just started: it is given the benefit of the
// doubt, since the API server has vouched for the token.
func (r *Reviewer) checkAddress(id mesh.ID, pod boundPod, from netip.Addr) error {
	if r.config.PodAddrs == nil {
		return nil
	}
	addrs := r.config.PodAddrs(id.Namespace, pod.name, pod.uid)
	if len(addrs) == 0 || slices.Contains(addrs, from) {
		return nil
	}
	return fmt.Errorf("%w: %w: %s/%s has %v", identity.ErrToken, errAddress, id.Namespace, pod.name, addrs)
}
