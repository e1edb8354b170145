// Says who it is for each line of its input: "new" by a new default chain, "again" by the same one, told to renew.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func main() {
	ctx := context.Background()
	var cfg aws.Config
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var err error
		if lines.Text() == "new" {
			cfg, err = config.LoadDefaultConfig(ctx)
		} else {
			cfg.Credentials.(*aws.CredentialsCache).Invalidate()
		}
		var who *sts.GetCallerIdentityOutput
		if err == nil {
			who, err = sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil)
		}
		if err == nil {
			fmt.Println("ok", *who.Arn)
		} else {
			fmt.Println("no", strings.Join(strings.Fields(err.Error()), " "))
		}
	}
}
