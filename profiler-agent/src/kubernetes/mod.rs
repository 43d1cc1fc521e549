//! Which pods run on this node, asked of the Kubernetes API server: one list, then a watch that tells of changes, for as long
//! as the agent runs. Nothing waits for it: what it learns is told over a channel, and while the server is away what is known
//! stays known.
//!
//! Only metadata is asked for (`PartialObjectMetadata`,
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches>): the specification of a pod, with its
//! environment, does not leave the server. The right to list and watch pods is all it needs, and to get the ReplicaSets and Jobs that
//! they belong to.
//!
//! And, for commands that ask a whole cluster: which agents there are (`agents`), on which nodes the pods run that are meant
//! (`places`), and a way to a pod from outside (`forward`). Those ask as the user who runs them.

pub mod agents;
pub mod connect;
pub mod forward;
mod lines;
mod list;
mod namespaces;
pub mod object;
mod owners;
pub mod places;
mod pods;
mod request;
pub mod review;
pub mod table;
pub mod watch;

#[cfg(test)]
pub(crate) mod fake;
