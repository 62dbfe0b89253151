//! Restoring a sandbox's machine from a template of the user's own. Nothing stands in for that.

use super::machine::Machine;
use super::starting::{Obstacle, Starting, boot_limit};
use crate::error::Error;
use crate::http::Conversation;
use crate::templates::are_all_cold;
use crate::templates::own::OwnTemplates;
use crate::volumes::Attached;

impl Starting<'_> {
    /// Restores the container's machine from the template `name`, up to an agent that knows that it is in a clone, with
    /// which a conversation has begun.
    pub fn restore_own(
        &self,
        volumes: &Attached,
        name: &str,
    ) -> Result<(Machine, Conversation), Error> {
        self.clone_of_own(volumes, name)
            .map_err(Obstacle::into_error)
    }

    fn clone_of_own(
        &self,
        volumes: &Attached,
        name: &str,
    ) -> Result<(Machine, Conversation), Obstacle> {
        if are_all_cold() {
            return Err(Obstacle::Failed(format!(
                "it is to begin in the template {name}, and BULKHEAD_COLD is set, which has all machines boot: \
                 unset it"
            )));
        }
        self.check_devices(volumes)?;
        let template = OwnTemplates::of(self.layout).open(name)?;
        template.check(self.config.machine)?;
        let restored =
            self.clone_of(volumes, template.folder())
                .and_then(|(mut machine, windows)| {
                    let talk = self.wake(&mut machine, windows, boot_limit())?;
                    Ok((machine, talk))
                });
        // Until now it was needed.
        drop(template);
        restored.map_err(|obstacle| match obstacle {
            Obstacle::Failed(why) => Obstacle::Failed(format!(
                "its machine cannot be restored from the template {name}: {why}"
            )),
            over => over,
        })
    }
}
