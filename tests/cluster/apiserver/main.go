// A kube-apiserver with its etcd in one process: the real thing, for the cluster tests.
//
// ETCD_DIR names the data directory; ETCD_PORT and ETCD_PEER_PORT the two local ports (23790 and 23800 when unset).
// Every argument is the API server's own.
package main

import (
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if len(os.Args) == 1 || os.Args[1] != "--version" {
		if err := startEtcd(); err != nil {
			fmt.Fprintln(os.Stderr, "etcd:", err)
			os.Exit(1)
		}
	}
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}

func startEtcd() error {
	config := embed.NewConfig()
	config.Dir = os.Getenv("ETCD_DIR")
	config.LogLevel = "warn"
	config.UnsafeNoFsync = true
	client, peer := local("ETCD_PORT", "23790"), local("ETCD_PEER_PORT", "23800")
	config.ListenClientUrls, config.AdvertiseClientUrls = client, client
	config.ListenPeerUrls, config.AdvertisePeerUrls = peer, peer
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("not ready after a minute")
	}
}

func local(variable, fallback string) []url.URL {
	port := os.Getenv(variable)
	if port == "" {
		port = fallback
	}
	return []url.URL{{Scheme: "http", Host: "127.0.0.1:" + port}}
}
