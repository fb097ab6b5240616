//! Notices that the wall clock was set: levels sleep by the monotonic clock, and would sleep on.
//!
//! On Linux a timer on the realtime clock that is cancelled when the clock is set says so at once, also
//! after the machine slept. Elsewhere, and where there is no such timer, both clocks are compared once a
//! second.

use std::time::Duration;

use super::Wheel;
use crate::actors::Clock;

/// Between two looks where nothing tells.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The clocks may drift apart by this much between two looks.
const DRIFT_MS: u64 = 20;

/// Tells the wheel whenever the wall clock is set, for as long as its arbiter lives.
pub(super) async fn watch(wheel: Wheel, clock: Clock) {
    #[cfg(target_os = "linux")]
    if !clock.is_moved() {
        match told::watch(&wheel).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(target: "waterwheel::wheel", %error, "the clock is looked at once a second");
            }
        }
    }
    look(&wheel, clock).await;
}

async fn look(wheel: &Wheel, clock: Clock) {
    let mut before = clock.now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = clock.now();
        let passed = now.monotonic.0.saturating_sub(before.monotonic.0);
        let expected = before.wall.0.saturating_add_unsigned(passed);
        if now.wall.0.abs_diff(expected) > DRIFT_MS {
            wheel.clock_set();
        }
        before = now;
    }
}

#[cfg(target_os = "linux")]
mod told {
    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::io::Errno;
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::unix::AsyncFd;

    use super::Wheel;

    /// Far enough ahead never to come.
    const NEVER_S: i64 = 1 << 40;

    pub(super) async fn watch(wheel: &Wheel) -> io::Result<()> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd keeps to what that asks for: it is open, and the same, until it is dropped"
        )]
        let timer = AsyncFd::new(timerfd_create(TimerfdClockId::Realtime, flags)?)?;
        arm(timer.get_ref())?;
        loop {
            let mut ready = timer.readable().await?;
            let read = ready.try_io(|timer| {
                let mut expirations = [0_u8; 8];
                Ok(rustix::io::read(timer.get_ref(), &mut expirations)?)
            });
            match read {
                // The clock was set: the timer was cancelled by it.
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::CANCELED) => {
                    arm(timer.get_ref())?;
                    wheel.clock_set();
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(_)) => arm(timer.get_ref())?,
                Err(_would_block) => {}
            }
        }
    }

    fn arm(timer: &OwnedFd) -> io::Result<()> {
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let never = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: NEVER_S,
                tv_nsec: 0,
            },
        };
        timerfd_settime(timer, flags, &never)?;
        Ok(())
    }
}
