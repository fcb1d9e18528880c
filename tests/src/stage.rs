//! The whole of it at once: Redis, a controller, an agent, a client.

use crate::{Acc, AccOptions, Agent, AgentOptions, Client, Redis};

/// A running system with one node, 1:10. Its parts are dropped from the node to Redis.
pub struct Stage {
    /// A connection to Redis.
    pub client: Client,
    /// The node.
    pub agent: Agent,
    /// The controller.
    pub acc: Acc,
    /// The private Redis.
    pub redis: Redis,
}

impl Stage {
    /// Plain HTTP without credentials: the quickest to start.
    #[track_caller]
    pub fn start() -> Stage {
        Stage::start_with(AccOptions::default(), AgentOptions::default())
    }

    /// HTTPS and an enrolled agent, as in real life.
    #[track_caller]
    pub fn start_secure() -> Stage {
        Stage::start_with(AccOptions::secure(), AgentOptions::default())
    }

    /// With options for both programs.
    #[track_caller]
    pub fn start_with(acc: AccOptions, agent: AgentOptions) -> Stage {
        let redis = Redis::start();
        let acc = Acc::start(&redis, acc);
        let client = Client::new(&redis);
        let agent = Agent::start(&acc, agent);
        Stage { client, agent, acc, redis }
    }
}

/// Starts Redis and a controller, with a client of that Redis: everything but an agent.
#[track_caller]
pub fn site(options: AccOptions) -> (Redis, Acc, Client) {
    let redis = Redis::start();
    let acc = Acc::start(&redis, options);
    let client = Client::new(&redis);
    (redis, acc, client)
}
