//! Says who it is for each line of its input: "new" by a new default chain, "again" by the same one.

use aws_config::{identity::IdentityCache, BehaviorVersion};
use aws_sdk_sts::{error::DisplayErrorContext, Client};

#[tokio::main]
async fn main() {
    let mut client = None;
    println!("ready");
    for line in std::io::stdin().lines() {
        if line.unwrap() == "new" {
            // Without the cache in front of the chain every call asks the chain; what the chain itself keeps stays.
            let chain = aws_config::defaults(BehaviorVersion::latest()).identity_cache(IdentityCache::no_cache());
            client = Some(Client::new(&chain.load().await));
        }
        match client.as_ref().unwrap().get_caller_identity().send().await {
            Ok(who) => println!("ok {}", who.arn().unwrap()),
            Err(error) => {
                let said = DisplayErrorContext(&error).to_string();
                println!("no {}", said.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
    }
}
