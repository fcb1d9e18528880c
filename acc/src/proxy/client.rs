//! One client, as the event loop knows it, and the table of all clients.
//!
//! Owns: a client's phase and what is counted for it; slots, and ids that outlive them harmlessly.
//! Does not own: what moves a client from phase to phase (`connection`, `request`, `actions`).

use super::request_head::RequestHead;
use super::request_parser::Conn;
use super::response::Response;
use super::transport::Transport;
use crate::auth::tls::PeerCert;
use jscommon::NodeId;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Instant;

/// Where a client is. Each phase but the last two has its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// In the TLS handshake.
    Handshake,
    /// Between requests.
    Idle,
    /// In a head.
    Head,
    /// In a body.
    Body,
    /// Its request waits for a connection to tiny_http, or is with it.
    Asking,
    /// Its poll is parked.
    Parked,
    /// It sends too much a second, and its response waits for a moment.
    Pausing,
    /// Its response is being written.
    Responding,
    /// It was refused; what it still sends is read and dropped.
    Linger,
}

/// The id of a client: a slot, and which of the slot's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId {
    /// Of four bytes, for there may be very many.
    slot: u32,
    pub(crate) generation: u32,
}

impl ConnectionId {
    /// The id of a slot and a generation; there are far fewer slots than four bytes can count.
    pub(crate) fn new(slot: usize, generation: u32) -> ConnectionId {
        ConnectionId { slot: slot as u32, generation }
    }

    /// The slot.
    pub(crate) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// One client.
pub(crate) struct Client {
    pub(crate) id: ConnectionId,
    pub(crate) transport: Transport,
    pub(crate) conn: Conn,
    pub(crate) peer: SocketAddr,
    pub(crate) phase: Phase,
    pub(crate) accepted: Instant,
    /// The deadline of its phase, as the timers have it.
    pub(crate) deadline: Option<Instant>,
    /// When the body or the response has to be through, however steadily it moves.
    pub(crate) hard_deadline: Instant,
    /// The socket may hold more than was read.
    pub(crate) readable: bool,
    /// It has proved to be a node's.
    pub(crate) authenticated: bool,
    /// The node that it has proved to be first, among whose connections it counts.
    pub(crate) first_node: Option<NodeId>,
    /// It was refused: what it still sends is not waited for long.
    pub(crate) refused: bool,
    /// The content of its certificate.
    pub(crate) cert: Option<PeerCert>,
    /// The last moment (ms since 1970) at which its certificate holds, where it has one that names a node.
    pub(crate) cert_ends: Option<NonZeroU64>,
    /// The request that is under way, and the node that it was admitted for.
    pub(crate) head: Option<Box<RequestHead>>,
    pub(crate) node: Option<NodeId>,
    /// When the request under way was whole.
    pub(crate) request_complete_at: Instant,
    /// The bytes of the request's body that are counted until the request is handed on.
    pub(crate) request_bytes: Option<u32>,
    /// The response that waits.
    pub(crate) delayed_response: Option<Box<Response>>,
    /// The bytes of the response that are counted.
    pub(crate) response_bytes: usize,
}

/// All clients.
#[derive(Default)]
pub(crate) struct Clients {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    client: Option<Box<Client>>,
}

impl Clients {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// An id for the next client; `insert` it before asking again.
    pub(crate) fn vacant(&mut self) -> ConnectionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        ConnectionId::new(slot, self.slots[slot].generation)
    }

    /// Gives a vacant id back.
    pub(crate) fn forgo(&mut self, id: ConnectionId) {
        self.free.push(id.slot());
    }

    /// Puts a client under its vacant id.
    pub(crate) fn insert(&mut self, client: Client) {
        let slot = client.id.slot();
        self.slots[slot].client = Some(Box::new(client));
    }

    /// The client of a slot.
    pub(crate) fn at(&mut self, slot: usize) -> Option<&mut Client> {
        self.slots.get_mut(slot)?.client.as_deref_mut()
    }

    /// The client of that id, while it is there.
    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut Client> {
        self.at(id.slot()).filter(|client| client.id == id)
    }

    /// Takes a client out; its id is nobody's from now on.
    pub(crate) fn remove(&mut self, slot: usize) -> Option<Box<Client>> {
        let entry = self.slots.get_mut(slot)?;
        let client = entry.client.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        Some(client)
    }

    /// The ids of all clients.
    pub(crate) fn ids(&self) -> Vec<ConnectionId> {
        self.slots.iter().filter_map(|slot| slot.client.as_ref()).map(|client| client.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There may be 50,000; musl's allocator gives the next larger one 400 bytes.
    #[test]
    fn a_client_has_room_in_320_bytes() {
        assert!(size_of::<Client>() <= 316, "{}", size_of::<Client>());
    }
}
