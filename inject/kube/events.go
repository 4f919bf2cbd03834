package kube

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

const (
	// quiet is for how long the same Event is not written again: a Deployment of
	// 100 replicas says the same 100 times.
	quiet     = 10 * time.Minute
	maxEvents = 1024 // in that time
)

// events writes Events, each one seldom.
type events struct {
	client kubernetes.Interface
	log    *slog.Logger
	now    func() time.Time

	mu   sync.Mutex
	last map[string]time.Time
}

// write writes an Event; that of a namespace itself goes to the namespace
// "default", as those of all objects without a namespace do.
func (e *events) write(ctx context.Context, about corev1.ObjectReference, kind, reason, message string) {
	now := e.now()
	if !e.due(about.Kind+"/"+about.Namespace+"/"+about.Name+"/"+reason, now) {
		return
	}
	namespace := cmp.Or(about.Namespace, metav1.NamespaceDefault)
	at := metav1.NewTime(now)
	_, err := e.client.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", about.Name, now.UnixNano()), Namespace: namespace},
		InvolvedObject: about, Reason: reason, Message: message, Type: kind, Count: 1, FirstTimestamp: at, LastTimestamp: at,
		Source: corev1.EventSource{Component: cluster.Control}, ReportingController: "tulle.dev/control",
	}, metav1.CreateOptions{})
	if err != nil {
		e.log.Warn("an Event could not be written", "about", about.Name, "event", message, "reason", err)
	}
}

func (e *events) due(key string, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if last, ok := e.last[key]; ok && now.Sub(last) < quiet {
		return false
	}
	if len(e.last) >= maxEvents {
		maps.DeleteFunc(e.last, func(_ string, at time.Time) bool { return now.Sub(at) >= quiet })
		if len(e.last) >= maxEvents {
			return false // whoever asks for so many invents them
		}
	}
	e.last[key] = now
	return true
}
