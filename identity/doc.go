// Package identity decides who may call itself what: it is the authority that
// signs the certificates of the mesh.
//
//	authority, err := identity.Open(identity.Config{Dir: "/var/lib/tulle", TrustDomain: "tulle.local"})
//	tokens := identity.NewTokens(identity.TokenConfig{})
//	server := identity.NewServer(identity.ServerConfig{Authority: authority, Tokens: tokens})
//	g := grpc.NewServer(identity.ServerOptions(authority, log)...)
//	tullev1.RegisterIdentityServer(g, server)
//
// The model: an Authority signs with one root and trusts one or more, so that a
// root can be replaced while everything runs. Whoever asks for a certificate
// proves who it is by a one-time token, or, to renew, by the certificate it
// has; a CSR brings the key and nothing else.
//
// Not here: revocation lists. A leaf lives for 24 h; ServerConfig.Admit stops
// its renewal.
package identity
