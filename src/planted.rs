//! Bugs on purpose, so that a test of this extension can show that it would notice them. They are there only with the
//! feature `planted_bugs`, which no release has; without it `is` is a constant false and the compiler drops every hook.

/// What the hooks ask about; which of them is planted, the setting background_jobs.planted says.
#[derive(Debug, Clone, Copy)]
pub enum Bug {
    /// The handler's effects are committed although the job was withdrawn meanwhile.
    EffectsApart,
    /// The fence lets every attempt pass.
    NoFence,
    /// Neither the completion nor the queue heeds a cancel.
    NoCancelGuard,
    /// Some wake-ups are lost, and no poll makes up for them.
    NoPoll,
    /// What was running at a crash is not charged.
    NoCrashCharge,
    /// A session keeps what a handler left in it.
    NoScrub,
}

#[cfg(not(feature = "planted_bugs"))]
pub const fn is(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted_bugs")]
pub use setting::{define, is};

#[cfg(feature = "planted_bugs")]
mod setting {
    use super::Bug;
    use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
    use std::ffi::CString;

    static PLANTED: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

    pub fn define() {
        GucRegistry::define_string_guc(
            c"background_jobs.planted",
            c"Names the bug to plant.",
            c"This server is for testing the tests.",
            &PLANTED,
            GucContext::Sighup,
            GucFlags::default(),
        );
    }

    pub fn is(bug: Bug) -> bool {
        let name = match bug {
            Bug::EffectsApart => c"effects_apart",
            Bug::NoFence => c"no_fence",
            Bug::NoCancelGuard => c"no_cancel_guard",
            Bug::NoPoll => c"no_poll",
            Bug::NoCrashCharge => c"no_crash_charge",
            Bug::NoScrub => c"no_scrub",
        };
        PLANTED.get().as_deref() == Some(name)
    }
}
