package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
)

// maxReview bounds a review in bytes: etcd takes objects of 1.5 MiB, and a
// review may hold one twice.
const maxReview = 4 << 20

// Reviews of more than usualReview bytes are read a few at a time: whoever sends
// many large ones at once, and slowly, takes no more memory than maxLarge of them.
const (
	usualReview = 16 << 10
	maxLarge    = 8
)

// WebhookConfig is what NewWebhook needs.
type WebhookConfig struct {
	Inject Config
	// Defaults returns the annotations of a namespace; nil: there are none.
	Defaults func(namespace string) map[string]string
	// Skipped is told of pods that get no proxy though they should, but not of
	// trial runs; nil: nobody wants to know.
	Skipped func(namespace string, owner Owner, reason string)
	Log     *slog.Logger // nil: slog.Default()
}

// Webhook answers admission reviews (admission.k8s.io/v1) of pods.
type Webhook struct {
	config WebhookConfig
	large  chan struct{} // has room for one of each large review
}

// NewWebhook returns an http.Handler; it needs a server with timeouts around it.
func NewWebhook(config WebhookConfig) (*Webhook, error) {
	if err := config.Inject.Validate(); err != nil {
		return nil, err
	}
	if config.Defaults == nil {
		config.Defaults = func(string) map[string]string { return nil }
	}
	if config.Skipped == nil {
		config.Skipped = func(string, Owner, string) {}
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	return &Webhook{config: config, large: make(chan struct{}, maxLarge)}, nil
}

type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID      string `json:"uid"`
	Resource struct {
		Group    string `json:"group"`
		Version  string `json:"version"`
		Resource string `json:"resource"`
	} `json:"resource"`
	SubResource string          `json:"subResource"`
	Namespace   string          `json:"namespace"`
	Operation   string          `json:"operation"`
	DryRun      bool            `json:"dryRun"`
	Object      json.RawMessage `json:"object"`
}

type response struct {
	UID       string   `json:"uid"`
	Allowed   bool     `json:"allowed"`
	Status    *status  `json:"status,omitempty"`
	PatchType string   `json:"patchType,omitempty"`
	Patch     []byte   `json:"patch,omitempty"` // base64 in JSON
	Warnings  []string `json:"warnings,omitempty"`
}

type status struct {
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Code    int    `json:"code"`
}

const (
	reviewVersion = "admission.k8s.io/v1"
	reviewKind    = "AdmissionReview"
)

// ServeHTTP answers one review.
func (w *Webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		http.Error(rw, "only POST", http.StatusMethodNotAllowed)
		return
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		http.Error(rw, "only application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, done, err := w.read(rw, r)
	defer done()
	if err != nil {
		code := http.StatusBadRequest
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(rw, err.Error(), code)
		return
	}
	req, err := readReview(body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := json.Marshal(review{APIVersion: reviewVersion, Kind: reviewKind, Response: w.answer(req)})
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	_, _ = rw.Write(answer)
}

// read returns the body, and what has to be called once it is not needed any more.
func (w *Webhook) read(rw http.ResponseWriter, r *http.Request) (body []byte, done func(), err error) {
	in := http.MaxBytesReader(rw, r.Body, maxReview)
	done = func() {}
	body, err = io.ReadAll(io.LimitReader(in, usualReview))
	if err != nil || len(body) < usualReview {
		return body, done, err
	}
	select {
	case w.large <- struct{}{}:
		done = func() { <-w.large }
	case <-r.Context().Done():
		return nil, done, r.Context().Err()
	}
	rest, err := io.ReadAll(in)
	return append(body, rest...), done, err
}

// readReview takes what the webhook was registered for, and nothing else.
func readReview(body []byte) (*request, error) {
	var r review
	decoder := json.NewDecoder(bytes.NewReader(body))
	if err := decoder.Decode(&r); err != nil {
		return nil, fmt.Errorf("not a review: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not a review: something follows it")
	}
	switch {
	case r.APIVersion != reviewVersion || r.Kind != reviewKind:
		return nil, fmt.Errorf("not a review: %q of %q, must be %s of %s", r.Kind, r.APIVersion, reviewKind, reviewVersion)
	case r.Request == nil || r.Response != nil || r.Request.UID == "":
		return nil, errors.New("not a review: no request with a uid")
	}
	q := r.Request
	switch {
	case q.Resource.Group != "" || q.Resource.Version != "v1" || q.Resource.Resource != "pods" || q.SubResource != "":
		return nil, fmt.Errorf("a review of %s/%s %s: only pods are of interest", q.Resource.Group, q.Resource.Version, q.Resource.Resource)
	case q.Operation != "CREATE":
		return nil, fmt.Errorf("a review of the operation %q: only CREATE is of interest", q.Operation)
	}
	return q, nil
}

func (w *Webhook) answer(q *request) *response {
	result, err := w.config.Inject.Patch(q.Object, Origin{Namespace: q.Namespace, Defaults: w.config.Defaults(q.Namespace)})
	log := w.config.Log.With("namespace", q.Namespace, "owner", result.Owner.Name)
	if err != nil {
		log.Warn("refused a pod", "reason", err)
		return &response{UID: q.UID, Status: &status{Message: "tulle: " + err.Error(), Reason: "Invalid", Code: http.StatusUnprocessableEntity}}
	}
	a := &response{UID: q.UID, Allowed: true}
	for _, warning := range result.Warnings {
		a.Warnings = append(a.Warnings, "tulle: "+warning)
		if !q.DryRun {
			w.config.Skipped(q.Namespace, result.Owner, warning)
		}
	}
	if len(result.Patch) == 0 {
		log.Debug("left a pod as it is", "reason", result.Skipped)
		return a
	}
	if a.Patch, err = json.Marshal(result.Patch); err != nil {
		return &response{UID: q.UID, Status: &status{Message: "tulle: " + err.Error(), Reason: "InternalError", Code: http.StatusInternalServerError}}
	}
	a.PatchType = "JSONPatch"
	log.Debug("put a proxy into a pod")
	return a
}
