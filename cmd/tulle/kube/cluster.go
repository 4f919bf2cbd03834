package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// oldest is the first version of Kubernetes that will do: the webhook's conditions
// are on from there. sidecars is the first with restartable init containers.
var oldest, sidecars = version.MustParseGeneric("1.28.0"), version.MustParseGeneric("1.29.0")

// manager is who we are in an object's managed fields.
const manager = "tulle"

// Target says which cluster is meant.
type Target struct {
	kubeconfig string // file; "": KUBECONFIG, or ~/.kube/config
	context    string // "": the current one
}

// Flags adds what all commands on a cluster have.
func (t *Target) Flags(f *command.Flags) {
	f.StringVar(&t.kubeconfig, "kubeconfig", "", "`FILE` with the cluster's address and your credentials")
	f.StringVar(&t.context, "context", "", "`NAME` of the kubeconfig's context to use")
}

// cluster is a connection to a Kubernetes cluster.
type cluster struct {
	name      string // of the context
	namespace string // of the context, "default" if it says none
	config    *rest.Config
	client    kubernetes.Interface
	dynamic   dynamic.Interface
	mapper    meta.ResettableRESTMapper
}

// connect reads the kubeconfig. It does not talk to the cluster yet.
func (t Target) connect(env *command.Env) (*cluster, error) {
	loader := t.loader(env)
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) || t.context == "" && len(raw.Clusters) == 0 {
		return nil, noCluster(env.Getenv("KUBECONFIG"))
	}
	if err != nil {
		return nil, command.WithHint(fmt.Errorf("kubeconfig: %w", err), "see what there is with: kubectl config get-contexts")
	}
	config.QPS, config.Burst = 100, 200 // the server has its own idea of fairness
	config.UserAgent = "tulle"
	config.WarningHandler = rest.NoWarnings{}
	c := &cluster{name: raw.CurrentContext, config: config}
	if t.context != "" {
		c.name = t.context
	}
	if c.namespace, _, err = loader.Namespace(); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	typed := rest.CopyConfig(config) // thousands of pods are read in a fraction of the time
	typed.ContentType = "application/vnd.kubernetes.protobuf"
	typed.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	if c.client, err = kubernetes.NewForConfig(typed); err != nil {
		return nil, err
	}
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, err
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.client.Discovery()))
	return c, nil
}

// noCluster is the error where no file names a cluster.
func noCluster(environ string) error {
	if environ == "" {
		return command.WithHint(errors.New("no Kubernetes cluster: KUBECONFIG is not set and there is no ~/.kube/config"), "name a file with --kubeconfig FILE")
	}
	return command.WithHint(fmt.Errorf("no Kubernetes cluster: KUBECONFIG=%s leads to none", environ), "name a file with --kubeconfig FILE; if this host is meant, unset KUBECONFIG")
}

func (t Target) loader(env *command.Env) clientcmd.ClientConfig {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: t.kubeconfig}
	if list := env.Getenv("KUBECONFIG"); t.kubeconfig == "" && list != "" {
		rules.Precedence = filepath.SplitList(list)
	} else if home := env.Getenv("HOME"); t.kubeconfig == "" && home != "" {
		rules.Precedence = []string{filepath.Join(home, ".kube", "config")}
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: t.context})
}

// Given tells whether the command line names a cluster.
func (t Target) Given() bool { return t.kubeconfig != "" || t.context != "" }

// Meant tells whether there is a kubeconfig, or should be one, for commands that
// work on a host as well.
func (t Target) Meant(env *command.Env) bool {
	raw, err := t.loader(env).RawConfig()
	return err != nil || len(raw.Clusters) > 0 || env.Getenv("KUBECONFIG") != ""
}

// version asks the cluster for its version, and refuses one that is too old.
func (c *cluster) version() (*version.Version, error) {
	info, err := c.client.Discovery().ServerVersion()
	if err != nil {
		return nil, c.explain(err)
	}
	v, err := version.ParseGeneric(info.GitVersion)
	if err != nil {
		return nil, fmt.Errorf("the cluster's version %q: %w", info.GitVersion, err)
	}
	if v.LessThan(oldest) {
		return v, command.WithHint(fmt.Errorf("the cluster runs Kubernetes %s, Tulle needs %s or newer", v, oldest), "upgrade the cluster first")
	}
	return v, nil
}

// explain puts an error of a call to the cluster in the user's terms.
func (c *cluster) explain(err error) error {
	var network *net.OpError
	switch {
	case err == nil || errors.Is(err, context.Canceled):
		return err
	case apierrors.IsUnauthorized(err):
		return command.WithHint(fmt.Errorf("cluster %s does not know you", c.name), "renew your credentials, then try: kubectl auth whoami")
	case apierrors.IsForbidden(err):
		// The API server's text names user, verb, resource and group.
		return command.WithHint(fmt.Errorf("you have too few rights in cluster %s: %w", c.name, err), "ask for them, or use a context that has them")
	case errors.As(err, &network), errors.Is(err, context.DeadlineExceeded):
		return command.WithHint(fmt.Errorf("cluster %s at %s does not answer: %w", c.name, c.config.Host, err), "is it the right one? see: kubectl config current-context")
	}
	return err
}

// poll calls done every half second until it says so, fails, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// gone makes "there is none" no error.
func gone(err error) error {
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil
	}
	return err
}

var everything = metav1.ListOptions{}
