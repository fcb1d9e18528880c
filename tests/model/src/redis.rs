//! The atomic steps in Redis, each named after the script (`acc/src/model/scripts`) or the call that it stands for.

use crate::state::*;

/// The answer of `poll.lua`.
pub(crate) enum Asked {
    Batch(u8, u8),
    Empty,
    /// The controller (plus one) that holds the poll has to be told first.
    Moved(u8),
}

/// The answer of `withdraw.lua`; of what is out, why.
#[derive(PartialEq)]
pub(crate) enum Withdrawn {
    Gone,
    Handed,
    Out(Reason),
}

impl Redis {
    /// `job_open.lua`: whether the job was known.
    pub(crate) fn open(&mut self, command: usize, targets: u8) -> bool {
        let job = &mut self.job[command];
        if std::mem::replace(&mut job.known, true) {
            return true;
        }
        for node in (0..NODES).filter(|node| (targets >> node) & 1 == 1) {
            job.field[node] = Field::Queued;
        }
        false
    }

    /// `job_standing.lua`: the nodes that are not known to have it.
    pub(crate) fn queued(&self, command: usize) -> u8 {
        let queued = |node: &usize| self.job[command].field[*node] == Field::Queued;
        (0..NODES).filter(queued).fold(0, |bits, node| bits | 1 << node)
    }

    /// `ZADD NX` of `jobs::expire_at`.
    pub(crate) fn expire_at(&mut self, command: usize, node: usize) {
        let wait = &mut self.expiring[command][node];
        if *wait == Wait::None {
            *wait = Wait::Waits;
        }
    }

    /// `enqueue.lua`: the batch that is handed over at once, or the holder (plus one) that must get a wake-up.
    /// `blind`: it does not look whether the command was withdrawn.
    pub(crate) fn enqueue(&mut self, ac: usize, command: usize, node: usize, blind: bool) -> (Option<(u8, u8)>, u8) {
        let queue = &mut self.queue[node];
        if queue.score[command] == 0 && (blind || queue.withdrawn[command] == Reason::None) {
            queue.seq += 1;
            queue.score[command] = queue.seq;
            queue.text[command] = true;
        }
        let holder = queue.holder;
        if usize::from(holder) == ac + 1 {
            return (queue.hand_over(), 0);
        }
        (None, holder)
    }

    /// `dispatch.lua`: all steps of a job that was taken for the first time in one. The batches that are handed over.
    pub(crate) fn dispatch(&mut self, ac: usize, command: usize, targets: u8) -> [Option<(usize, (u8, u8))>; NODES] {
        let mut batches = [None; NODES];
        if !self.open(command, targets) {
            for node in (0..NODES).filter(|node| (targets >> node) & 1 == 1) {
                self.expire_at(command, node);
                let (batch, holder) = self.enqueue(ac, command, node, false);
                batches[node] = batch.map(|batch| (node, batch));
                if holder > 0 {
                    self.wakeups[usize::from(holder) - 1].fetch[node] = true;
                }
            }
        }
        // Of a known one the step `Do::Untake` does that, at the same moment as far as this model goes.
        self.taken[ac][command] = self.taken[ac][command].saturating_sub(1);
        batches
    }

    /// `acked.lua`: the commands that an acknowledgement covers.
    pub(crate) fn acked(&self, node: usize, ack: u8) -> Vec<usize> {
        let queue = &self.queue[node];
        let upto = ack.min(queue.handed);
        (0..COMMANDS).filter(|command| (1..=upto).contains(&queue.score[*command])).collect()
    }

    /// `job_running.lua`, and off the list of what may expire.
    pub(crate) fn running(&mut self, command: usize, node: usize) {
        let field = &mut self.job[command].field[node];
        if *field == Field::Queued {
            *field = Field::Running;
        }
        self.expiring[command][node] = Wait::None;
    }

    /// `poll.lua` as a poll that would wait.
    pub(crate) fn poll(&mut self, ac: usize, node: usize, ack: u8, told: u8) -> Asked {
        for command in self.acked(node, ack) {
            self.queue[node].score[command] = 0;
            self.queue[node].text[command] = false;
        }
        let queue = &mut self.queue[node];
        let (me, holder) = (ac as u8 + 1, queue.holder);
        if holder != 0 && holder != me && holder != told {
            return Asked::Moved(holder);
        }
        match queue.hand_over() {
            Some((batch, commands)) => Asked::Batch(batch, commands),
            None => {
                queue.holder = me;
                Asked::Empty
            }
        }
    }

    /// `withdraw.lua`: the reason that was given first stands. `cautious`: what was handed over of late counts as under way.
    pub(crate) fn withdraw(&mut self, command: usize, node: usize, why: Reason, cautious: bool) -> Withdrawn {
        let queue = &mut self.queue[node];
        if !queue.text[command] {
            queue.score[command] = 0;
            return Withdrawn::Gone;
        }
        let score = queue.score[command];
        if score > 0 {
            if cautious && score <= queue.handed && queue.recent {
                return Withdrawn::Handed;
            }
            queue.score[command] = 0;
        }
        if queue.withdrawn[command] == Reason::None {
            queue.withdrawn[command] = why;
        }
        Withdrawn::Out(queue.withdrawn[command])
    }

    /// `queue::forget`.
    pub(crate) fn forget(&mut self, command: usize, node: usize) {
        self.queue[node].text[command] = false;
        self.expiring[command][node] = Wait::None;
    }

    /// `decide_result.lua`.
    pub(crate) fn decide(&mut self, command: usize, node: usize, run: Run) -> Verdict {
        let done = &mut self.done[command][node];
        match *done {
            Done::None => {
                *done = Done::Decided(run);
                Verdict::First
            }
            Done::Decided(by) if by == run => Verdict::First,
            Done::Pushed(by) if by == run => Verdict::Repeat,
            _ => Verdict::Late,
        }
    }

    /// `job_result.lua`. `keeps`: an answer that stands there stays.
    pub(crate) fn result(&mut self, command: usize, node: usize, answer: Answer, keeps: bool) {
        let job = &mut self.job[command];
        if job.known && !(keeps && matches!(job.field[node], Field::Final(_))) {
            job.field[node] = Field::Final(answer);
        }
    }

    /// `push_result.lua`. `marked`: only while the `+` is there.
    pub(crate) fn push(&mut self, command: usize, node: usize, run: Run, answer: Answer, marked: bool) {
        let done = &mut self.done[command][node];
        if marked && *done != Done::Decided(run) {
            return;
        }
        *done = Done::Pushed(run);
        let listed = &mut self.listed[command][node];
        if listed.count == 0 {
            listed.first = answer;
        }
        listed.count = (listed.count + 1).min(2);
    }

    /// `deliver_result.lua`: all steps of a result in one.
    pub(crate) fn deliver(&mut self, command: usize, node: usize, answer: Answer) {
        let verdict = self.decide(command, node, Run::Node);
        if verdict != Verdict::Late {
            self.result(command, node, answer, verdict == Verdict::Repeat);
            self.push(command, node, Run::Node, answer, true);
        }
    }

    /// `reclaim_commands.lua`: moves what `from` had taken, unless it has beaten meanwhile.
    pub(crate) fn reclaim(&mut self, from: usize, to: usize) {
        if self.beat[from] == Beat::Fresh {
            return;
        }
        self.gone[from] = true;
        for command in 0..COMMANDS {
            self.taken[to][command] += std::mem::take(&mut self.taken[from][command]);
        }
        self.beat[from] = Beat::Absent;
        // `forget_controller.lua`, and the wake-ups that nobody receives.
        self.wakeups[from] = Wakeups::default();
    }
}

impl Queue {
    /// `handover.lua`: the batch's number and its commands as bits.
    pub(crate) fn hand_over(&mut self) -> Option<(u8, u8)> {
        let (mut batch, mut commands) = (0, 0);
        for command in 0..COMMANDS {
            if self.score[command] == 0 {
                continue;
            }
            if !self.text[command] {
                self.score[command] = 0;
                continue;
            }
            batch = batch.max(self.score[command]);
            commands |= 1 << command;
        }
        if batch == 0 {
            return None;
        }
        self.handed = self.handed.max(batch);
        self.recent = true;
        self.holder = 0;
        Some((batch, commands))
    }
}
