package inject

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

func newWebhook(t testing.TB, skipped func(string, Owner, string)) *Webhook {
	t.Helper()
	w, err := NewWebhook(WebhookConfig{
		Inject: testConfig(), Skipped: skipped, Log: slog.New(slog.DiscardHandler),
		Defaults: func(ns string) map[string]string {
			if ns == "bad" {
				return map[string]string{cluster.LogLevel: "loud"}
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func reviewOf(pod string, fields ...string) string {
	extra := ""
	for _, f := range fields {
		extra += "," + f
	}
	return fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"42","kind":{"group":"","version":"v1","kind":"Pod"},
		"resource":{"group":"","version":"v1","resource":"pods"},"operation":"CREATE","object":%s%s}}`, pod, extra)
}

const simple = `{"metadata":{"name":"web"},"spec":{"containers":[{"name":"web"}]}}`

func post(h http.Handler, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, cluster.WebhookPath, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, r)
	return answer
}

func TestWebhook(t *testing.T) {
	var events []string
	w := newWebhook(t, func(ns string, o Owner, reason string) { events = append(events, ns+" "+o.Kind+"/"+o.Name+": "+reason) })
	owned := `{"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","kind":"DaemonSet","name":"agent","uid":"u","controller":true}]},"spec":{"hostNetwork":true,"containers":[{"name":"a"}]}}`
	for _, tt := range []struct {
		name, body               string
		allowed, patched, warned bool
		message                  string
	}{
		{"a pod", reviewOf(simple, `"namespace":"shop"`), true, true, false, ""},
		{"host network", reviewOf(owned, `"namespace":"shop"`), true, false, true, ""},
		{"host network, on trial", reviewOf(owned, `"namespace":"trial"`, `"dryRun":true`), true, false, true, ""},
		{"opted out", reviewOf(`{"metadata":{"annotations":{"tulle.dev/inject":"disabled"}},"spec":{"containers":[{"name":"a"}]}}`), true, false, false, ""},
		{"a bad annotation", reviewOf(`{"metadata":{"annotations":{"tulle.dev/opaque-ports":"0"}},"spec":{"containers":[{"name":"a"}]}}`), false, false, false, "opaque-ports"},
		{"of the namespace", reviewOf(simple, `"namespace":"bad"`), false, false, false, "of the namespace"},
		{"no pod", reviewOf(`[]`), false, false, false, "not a pod"},
	} {
		answer := post(w, "application/json", tt.body)
		var got admissionv1.AdmissionReview
		if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil || answer.Code != 200 || got.Response == nil {
			t.Fatalf("%s: %d %s", tt.name, answer.Code, answer.Body)
		}
		r := got.Response
		if got.APIVersion != "admission.k8s.io/v1" || got.Kind != "AdmissionReview" || got.Request != nil || r.UID != "42" || r.Allowed != tt.allowed ||
			(len(r.Patch) > 0) != tt.patched || (len(r.Warnings) > 0) != tt.warned {
			t.Errorf("%s: %s", tt.name, answer.Body)
		}
		if tt.patched && (r.PatchType == nil || *r.PatchType != admissionv1.PatchTypeJSONPatch || !json.Valid(r.Patch)) {
			t.Errorf("%s: %s", tt.name, r.Patch)
		}
		if !tt.allowed && (r.Result == nil || !strings.Contains(r.Result.Message, tt.message)) {
			t.Errorf("%s: %+v", tt.name, r.Result)
		}
	}
	if len(events) != 1 || !strings.HasPrefix(events[0], "shop DaemonSet/agent: no proxy") {
		t.Errorf("%q", events)
	}
}

func TestWebhookRefuses(t *testing.T) {
	w := newWebhook(t, nil)
	good := reviewOf(simple)
	for _, tt := range []struct {
		name, contentType, body string
		code                    int
	}{
		{"good", "application/json; charset=utf-8", good, 200},
		{"another type", "text/plain", good, 415},
		{"no type", "", good, 415},
		{"nothing", "application/json", "", 400},
		{"half of it", "application/json", good[:len(good)/2], 400},
		{"two of them", "application/json", good + good, 400},
		{"another version", "application/json", strings.Replace(good, "k8s.io/v1", "k8s.io/v1beta1", 1), 400},
		{"another kind", "application/json", strings.Replace(good, "AdmissionReview", "Pod", 1), 400},
		{"no request", "application/json", `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`, 400},
		{"no uid", "application/json", strings.Replace(good, `"uid":"42"`, `"uid":""`, 1), 400},
		{"another resource", "application/json", strings.Replace(good, `"pods"`, `"secrets"`, 1), 400},
		{"a subresource", "application/json", reviewOf(simple, `"subResource":"exec"`), 400},
		{"an update", "application/json", strings.Replace(good, "CREATE", "UPDATE", 1), 400},
		{"too much", "application/json", strings.Repeat(" ", maxReview+1), 413},
	} {
		if answer := post(w, tt.contentType, tt.body); answer.Code != tt.code {
			t.Errorf("%s: %d %s", tt.name, answer.Code, answer.Body)
		}
	}
	answer := httptest.NewRecorder()
	w.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, cluster.WebhookPath, nil))
	if answer.Code != 405 || answer.Header().Get("Allow") != "POST" {
		t.Errorf("GET: %d", answer.Code)
	}
}

func FuzzWebhook(f *testing.F) {
	f.Add(reviewOf(simple))
	f.Add(reviewOf(`{"metadata":{"annotations":{"tulle.dev/x":"\n"}}}`))
	w := newWebhook(f, nil)
	f.Fuzz(func(t *testing.T, body string) {
		answer := post(w, "application/json", body)
		if answer.Code != 200 {
			return
		}
		var got review
		if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&got); err != nil || got.Response == nil || got.Response.UID == "" {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// Large reviews are read a few at a time; those that come slowly keep nobody
// waiting whose review is as large as most are.
func TestWebhookReadsFewLargeReviewsAtOnce(t *testing.T) {
	w := newWebhook(t, nil)
	start := func(body io.Reader) <-chan int {
		code := make(chan int, 1)
		r := httptest.NewRequest(http.MethodPost, cluster.WebhookPath, body)
		r.Header.Set("Content-Type", "application/json")
		answer := httptest.NewRecorder()
		go func() { w.ServeHTTP(answer, r); code <- answer.Code }()
		return code
	}
	large := reviewOf(simple) + strings.Repeat(" ", usualReview)
	var slow []*io.PipeWriter
	var answers []<-chan int
	for range maxLarge {
		body, send := io.Pipe()
		slow, answers = append(slow, send), append(answers, start(body))
		if _, err := io.WriteString(send, large[:usualReview]); err != nil {
			t.Fatal(err)
		}
	}
	for len(w.large) < maxLarge { // each has its turn, and sends nothing
		runtime.Gosched()
	}
	if answer := post(w, "application/json", reviewOf(simple)); answer.Code != 200 {
		t.Errorf("a usual review: %d %s", answer.Code, answer.Body)
	}
	next := start(strings.NewReader(large))
	for i, send := range slow {
		select {
		case code := <-next:
			t.Fatalf("one more large review was answered %d", code)
		default:
		}
		_, _ = io.WriteString(send, large[usualReview:])
		send.Close()
		if code := <-answers[i]; code != 200 {
			t.Errorf("a slow review: %d", code)
		}
		if i == 0 {
			if code := <-next; code != 200 {
				t.Errorf("the one that waited: %d", code)
			}
			next = nil
		}
	}
	if len(w.large) != 0 {
		t.Errorf("%d large reviews are said to be under way", len(w.large))
	}
}
