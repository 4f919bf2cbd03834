package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/identity"
	"github.com/tulle-mesh/tulle/inject"
)

// All of many reviews that one API server sends at the same moment are answered,
// each of which comes over a connection of its own.
func TestReviewsAtOnce(t *testing.T) {
	const reviews = 300
	authority, err := identity.Open(identity.Config{TrustDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	webhook, err := inject.NewWebhook(inject.WebhookConfig{
		Inject: inject.Config{Image: "proxy", Version: "1", TrustDomain: "cluster.local", Control: "control:1", CNI: true, Native: true},
		Log:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	// All are under way at once: none is answered before all have come.
	var come sync.WaitGroup
	come.Add(reviews)
	together := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		come.Done()
		come.Wait()
		webhook.ServeHTTP(w, r)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := httpServer(together, identity.HostTLS(authority, "tulle-control.tulle-system.svc"))
	server.ReadTimeout, server.WriteTimeout = time.Hour, time.Hour // how fast this machine is is not the question
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(forReviews(l, server.TLSConfig)) })
	t.Cleanup(func() { server.Close(); serving.Wait() })

	client := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}, // who it is is not the question
	}}
	t.Cleanup(client.CloseIdleConnections)
	failures := make(chan error, reviews)
	var asking sync.WaitGroup
	for i := range reviews {
		asking.Go(func() { failures <- askReview(&client, "https://"+l.Addr().String()+"/", fmt.Sprint("review-", i)) })
	}
	asking.Wait()
	close(failures)
	failed := 0
	for err := range failures {
		if err != nil {
			if failed++; failed == 1 {
				t.Error(err)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d reviews were not answered", failed, reviews)
	}
}

// askReview sends the review of a pod, which is to be given a proxy.
func askReview(client *http.Client, url, uid string) error {
	answer, err := client.Post(url, "application/json", strings.NewReader(fmt.Sprintf(`{
		"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
		"request": {"uid": %q, "resource": {"group": "", "version": "v1", "resource": "pods"}, "operation": "CREATE", "namespace": "shop",
			"object": {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}`, uid)))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	var review struct {
		Response struct {
			UID     string
			Allowed bool
			Patch   []byte
		}
	}
	if err := json.Unmarshal(body, &review); err != nil {
		return fmt.Errorf("%s: %w", body, err)
	}
	if r := review.Response; r.UID != uid || !r.Allowed || len(r.Patch) == 0 {
		return fmt.Errorf("answered %s", body)
	}
	return nil
}
