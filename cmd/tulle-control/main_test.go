package main

import (
	"fmt"
	"os"
	"testing"
)

// asControl makes this test program the control plane, for tests that need one
// in a process of its own.
const asControl = "TULLE_TEST_AS_CONTROL"

func TestMain(m *testing.M) {
	if os.Getenv(asControl) != "" {
		os.Exit(run(os.Args[1:], os.Stderr))
	}
	os.Exit(m.Run())
}

// fakeKubeconfig leads to the API server at url.
func fakeKubeconfig(t *testing.T, url string) string {
	t.Helper()
	path := t.TempDir() + "/kubeconfig"
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q}}]
users: [{name: test, user: {token: x}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, url)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
