# Says who it is for each line of its input, each time by a new process of the AWS CLI, as people use it.
echo ready
while read -r _; do
    if said=$("$AWS" sts get-caller-identity --query Arn --output text 2>&1); then
        echo "ok $said"
    else
        echo "no" $said
    fi
done
