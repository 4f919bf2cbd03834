package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

// many answers a list of pods in pages, as the API server does: never more than it
// is asked for, and with a token for the rest.
type many struct {
	pods    []corev1.Pod
	expires int // before which request it forgets the list once; 0: never
	before  func(r *http.Request, asked int)

	asked []int // how many pods each request has got
}

func (m *many) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m.before != nil {
		m.before(r, len(m.asked))
	}
	query := r.URL.Query()
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || query.Get("labelSelector") != meshedPods {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	from, _ := strconv.Atoi(query.Get("continue"))
	if m.expires > 0 && m.expires == len(m.asked) {
		m.expires = 0
		m.asked = append(m.asked, 0)
		w.WriteHeader(http.StatusGone)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired,
			Code: http.StatusGone, ListMeta: metav1.ListMeta{Continue: query.Get("continue")},
		})
		return
	}
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
	rest := m.pods[from:]
	list.Items = rest[:min(limit, len(rest))]
	if len(rest) > limit {
		list.Continue = strconv.Itoa(from + limit)
	}
	m.asked = append(m.asked, len(list.Items))
	_ = json.NewEncoder(w).Encode(list)
}

func (m *many) cluster(t *testing.T) *cluster {
	t.Helper()
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{name: "test", client: client, config: &rest.Config{Host: server.URL}}
}

func meshed(n int) []corev1.Pod {
	pods := make([]corev1.Pod, n)
	for i := range pods {
		pods[i].Name, pods[i].Namespace = fmt.Sprintf("web-%d", i), "shop"
		pods[i].Labels = map[string]string{names.MeshedLabel: "true"}
	}
	return pods
}

// A large mesh is read in pages, each pod once; also where the API server has
// forgotten meanwhile what it began with.
func TestEachPod(t *testing.T) {
	for _, c := range []struct {
		name    string
		pods    int
		expires int
		want    []int
	}{
		{"none", 0, 0, []int{0}},
		{"one page", podPage, 0, []int{podPage}},
		{"one more", podPage + 1, 0, []int{podPage, 1}},
		{"10,000", 10_000, 0, slices.Repeat([]int{podPage}, 10_000/podPage)},
		{"forgotten on the way", 2*podPage + 1, 2, []int{podPage, podPage, 0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &many{pods: meshed(c.pods), expires: c.expires}
			for i := range m.pods {
				if i%100 == 99 {
					m.pods[i].DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
				}
			}
			seen := map[string]bool{}
			err := m.cluster(t).eachPod(t.Context(), "", meshedPods, func(p *corev1.Pod) { seen[p.Name] = true })
			if err != nil || len(seen) != c.pods-c.pods/100 || !slices.Equal(m.asked, c.want) {
				t.Errorf("%v, saw %d pods of %d in pages of %v, want %v", err, len(seen), c.pods, m.asked, c.want)
			}
		})
	}
}

// A list that is cancelled ends with the page that it has got to.
func TestEachPodEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := &many{pods: meshed(3 * podPage), before: func(r *http.Request, asked int) {
		if asked == 1 {
			cancel()
			<-r.Context().Done() // who asked has heard of it
		}
	}}
	seen := 0
	err := m.cluster(t).eachPod(ctx, "", meshedPods, func(*corev1.Pod) { seen++ })
	if err == nil || seen != podPage {
		t.Errorf("%v after %d pods, want an error after the first page", err, seen)
	}
}
