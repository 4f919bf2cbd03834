package kube

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// forgery asks the authority for names that the caller has no right to.
func forgery(t *testing.T) {
	namespace(t, "forgery", false)
	apply(t, deploy("forgery", client, workload{name: "other", args: "hold"}))
	rolledOut(t, "forgery", "deployment/client", "deployment/other")
	thief, victim := clientPod(t, "forgery"), pods(t, "forgery", "scenario=other")[0]
	certify := func(token string, name ...string) result {
		args := []string{"-n", "forgery", "exec", "-i", thief, "-c", "app", "--", "/app", "certify", cluster.ControlHost + ":4190"}
		return run(t, token, "kubectl", slices.Concat(args, name)...)
	}
	token := func(audience string, more ...string) string {
		args := []string{"-n", "forgery", "create", "token", "default", "--audience", audience}
		return strings.TrimSpace(kubectl(t, slices.Concat(args, more)...))
	}
	boundTo := func(pod string) []string { return []string{"--bound-object-kind=Pod", "--bound-object-name=" + pod} }
	own := token(cluster.TokenAudience, boundTo(thief)...)
	const mine = "spiffe://cluster.local/ns/forgery/sa/default"
	if r := certify(own, mine); r.code != 0 || r.stdout != "["+mine+"] [] \n" {
		t.Fatalf("a pod's own token gets %q, want %s and nothing else\n%s", r.stdout, mine, r.stderr)
	}
	for _, c := range []struct {
		what, token string
		name        []string
	}{
		{"somebody else's name", own, []string{"spiffe://cluster.local/ns/kube-system/sa/default"}},
		{"the control plane's name", own, []string{"spiffe://cluster.local/ns/tulle/sa/control"}},
		{"another pod's token", token(cluster.TokenAudience, boundTo(victim)...), nil},
		{"a token for another audience", token("https://kubernetes.default.svc", boundTo(thief)...), nil},
		{"a token of no pod", token(cluster.TokenAudience), nil},
		{"a token that has ended", resigned(t, own, func(claims map[string]any) {
			claims["iat"], claims["nbf"], claims["exp"] = ago(2*time.Hour), ago(2*time.Hour), ago(time.Hour)
		}), nil},
		{"a token that is changed", own[:len(own)-8] + strings.Repeat("A", 8), nil},
		{"no token", "", nil},
	} {
		if r := certify(c.token, c.name...); r.code == 0 {
			t.Errorf("%s got a certificate: %s", c.what, r.stdout)
		}
	}
	// The same way of signing makes tokens that are taken: it was the time.
	same := resigned(t, own, func(map[string]any) {})
	if r := certify(same); r.code != 0 {
		t.Errorf("a token signed anew is refused, so nothing is known of the one that has ended: %s%s", r.stdout, r.stderr)
	}
}

func ago(d time.Duration) int64 { return time.Now().Add(-d).Unix() }

// resigned is a token with other claims, signed with the cluster's own key
// (RFC 7515, ES256), which no thief has.
func resigned(t *testing.T, token string, change func(claims map[string]any)) string {
	t.Helper()
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := decode[map[string]any](t, string(raw))
	for key, value := range claims {
		if seconds, ok := value.(float64); ok {
			claims[key] = int64(seconds) // as it was: JSON has no 1.7e9
		}
	}
	change(claims)
	if raw, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile("/run/kube/pki/sa.key")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		t.Fatal("no key in sa.key")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(raw)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := slices.Concat(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32)))
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}
