// Package kube lets the authority of the mesh live in a Kubernetes cluster: its
// key in a Secret that all replicas share, its callers proved by their pods'
// tokens.
//
//	keeper := &kube.Keeper{Client: client, ...}
//	authority, err := keeper.Open(ctx)
//	go keeper.Run(ctx) // follows the Secret
//	reviewer := kube.NewReviewer(kube.ReviewerConfig{Client: client, ...})
//	server := identity.NewServer(identity.ServerConfig{Authority: authority, Prove: reviewer.Prove, TokenOnly: true})
//
// The model: the API server says whose a token is (TokenReview), for an audience
// that is the mesh's alone, so that a token stolen from the mesh opens nothing
// else and no other token opens the mesh. The token is bound to a pod: it ends
// with it, and is taken only from that pod's address.
package kube
