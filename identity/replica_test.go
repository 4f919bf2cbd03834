package identity

import (
	"crypto/tls"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/tulle-mesh/tulle/mesh"
)

// Another replica may have more connections than a proxy, and takes none from
// proxies of its address; nobody else may, whatever certificate he shows.
func TestReplicasAreNotBounded(t *testing.T) {
	c := startControl(t, nil)
	call := func(config *tls.Config) error {
		conn, err := grpc.NewClient("passthrough:///"+c.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() }) // until then it stays open
		return conn.Invoke(t.Context(), "/nothing.Nothing/Nothing", &emptypb.Empty{}, &emptypb.Empty{})
	}
	for range 3 * maxConnsPerAddr {
		checkCode(t, "another replica", call(ReplicaTLS(c.authority)), codes.Unimplemented)
	}
	web := mesh.ID{TrustDomain: testDomain, Namespace: "shop", Account: "web"}
	proxies := []*tls.Config{
		{InsecureSkipVerify: true},
		{InsecureSkipVerify: true, Certificates: []tls.Certificate{*leaf(t, c.authority, web)}},
	}
	for i := range maxConnsPerAddr {
		checkCode(t, "a proxy", call(proxies[i%2]), codes.Unimplemented)
	}
	for _, config := range proxies {
		checkCode(t, "one too many", call(config), codes.Unavailable)
	}
}
