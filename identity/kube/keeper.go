package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/tulle-mesh/tulle/identity"
)

// rootsKey is where a Secret of type kubernetes.io/tls has further roots, as
// cert-manager writes it.
const rootsKey = "ca.crt"

// made marks a Secret that the control plane made: what it made it may rotate.
const madeLabel = "app.kubernetes.io/managed-by"

// Keeper keeps an authority at what a Secret says.
type Keeper struct {
	Client          kubernetes.Interface
	Namespace, Name string // of the Secret
	TrustDomain     string
	Log             *slog.Logger
	Now             func() time.Time // nil: time.Now

	authority *identity.Authority
	version   atomic.Pointer[string] // of the Secret in use
}

// Open returns the authority of the Secret. If there is none it makes one; of
// several replicas that find none at once, one is the first and the others use
// its Secret.
func (k *Keeper) Open(ctx context.Context) (*identity.Authority, error) {
	if k.Now == nil {
		k.Now = time.Now
	}
	secret, err := k.secret(ctx)
	if err != nil {
		return nil, err
	}
	config := identity.Config{TrustDomain: k.TrustDomain, Now: k.Now, Log: k.Log}
	if k.authority, err = identity.OpenKeyPair(config, pairOf(secret)); err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", k.Namespace, k.Name, err)
	}
	k.version.Store(&secret.ResourceVersion)
	return k.authority, nil
}

func (k *Keeper) secret(ctx context.Context) (*corev1.Secret, error) {
	secrets := k.Client.CoreV1().Secrets(k.Namespace)
	secret, err := secrets.Get(ctx, k.Name, metav1.GetOptions{})
	if err == nil || !apierrors.IsNotFound(err) {
		return secret, err
	}
	pair, err := identity.NewKeyPair(k.TrustDomain, k.Now())
	if err != nil {
		return nil, err
	}
	secret, err = secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: k.Name, Labels: map[string]string{madeLabel: "tulle-control"}},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: pair.Certificates, corev1.TLSPrivateKeyKey: pair.Key, rootsKey: pair.Roots},
	}, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return secrets.Get(ctx, k.Name, metav1.GetOptions{})
	case err != nil:
		return nil, fmt.Errorf("store the authority in secret %s/%s: %w", k.Namespace, k.Name, err)
	}
	k.Log.Info("made a new authority", "secret", k.Namespace+"/"+k.Name, "trust_domain", k.TrustDomain)
	return secret, nil
}

func pairOf(s *corev1.Secret) identity.KeyPair {
	return identity.KeyPair{Certificates: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey], Roots: s.Data[rootsKey]}
}

// Run follows the Secret until ctx ends. One that cannot be used, or that is
// gone, changes nothing: the authority goes on with what it has.
func (k *Keeper) Run(ctx context.Context) error {
	if k.authority == nil {
		return errors.New("identity/kube: Run before Open")
	}
	factory := informers.NewSharedInformerFactoryWithOptions(k.Client, 0, informers.WithNamespace(k.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, k.Name).String()
		}))
	informer := factory.Core().V1().Secrets().Informer()
	use := func(object any) {
		if secret, ok := object.(*corev1.Secret); ok && secret.Name == k.Name {
			k.use(secret)
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    use,
		UpdateFunc: func(_, now any) { use(now) },
		DeleteFunc: func(any) {
			k.Log.Error("the authority's secret is gone; going on with what it was, until a restart", "secret", k.Namespace+"/"+k.Name)
		},
	})
	if err != nil {
		return err
	}
	informer.RunWithContext(ctx)
	return nil
}

func (k *Keeper) use(secret *corev1.Secret) {
	if version := k.version.Load(); version != nil && *version == secret.ResourceVersion && secret.ResourceVersion != "" {
		return
	}
	if err := k.authority.Use(pairOf(secret)); err != nil {
		k.Log.Error("the authority's secret cannot be used; going on with what it was", "secret", k.Namespace+"/"+k.Name, "reason", err)
		return
	}
	k.version.Store(&secret.ResourceVersion)
	k.Log.Info("the authority's secret has changed", "secret", k.Namespace+"/"+k.Name, "roots", len(k.authority.Roots().Certificates))
}
